"""What stands before the routes in the REST reference."""

HEAD = """# Policy over REST

Printed by `python -m ca.api.policy.reference`; change the code, then run `make proto`.

Everything below `/v1/policy` is answered at the server's port, over TLS with ALPN `http/1.1`, and on its admin socket.
The same is described by `GET /v1/policy/openapi.json` (OpenAPI 3.1). How policies are written is in
[the policy language](language.md).

## Who may

Whoever comes through the admin socket may do everything. From the network any X.509-SVID that holds is let in, and
*grants* say what it gets; the SPIFFE IDs of `policy.admins` in the server's configuration need none, and give the first
ones. A banned agent is not let in.

| Role | May |
|---|---|
| `reader` | read policies, revisions, decisions and rollout of its namespaces, and ask about workloads there |
| `author` | the same, and write AuthorizationPolicy, RequestAuthentication and PeerAuthentication of its namespaces |
| `admin` | everything: Workload objects, policies for the whole mesh (the root namespace), grants and invariants |

A reader may have the namespace `*`, which is all of them.

A refusal names the grant that was missing, and is on record in the audit log. Nobody learns of what it may not read
whether it is there.

## By example

The admin socket is `/var/lib/burgee/server/run/admin.sock`, or of a `make up` the one that `.burgee/status.json` names.

```sh
SOCKET=${SOCKET:-/var/lib/burgee/server/run/admin.sock}
call() { curl --silent --show-error --unix-socket "$SOCKET" "$@"; }
api=http://localhost/v1/policy

# What can be called, and who may call it
call -X PUT "$api/workloads/shop/orders" -H 'Content-Type: application/yaml' --data-binary '
apiVersion: burgee.io/v1
kind: Workload
metadata: {name: orders, namespace: shop, labels: {app: orders}}
spec: {spiffeId: spiffe://example.org/ns/shop/sa/orders}
'
cat > orders.yaml <<'END'
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: orders, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: ["example.org/ns/shop/sa/web"]}}]
    to: [{operation: {methods: ["GET"]}}]
END

# What it would change, and then for good
one=$api/authorization-policies/shop/orders
call -X PUT "$one?dry_run=true" -H 'Content-Type: application/yaml' --data-binary @orders.yaml | jq .difference
call -X PUT "$one" -H 'Content-Type: application/yaml' --data-binary @orders.yaml | jq .revision

# A change names what it is a change of
etag=$(call -o /dev/null -w '%header{etag}' "$one")
call -X PATCH "$one" -H "If-Match: $etag" -H 'Content-Type: application/json-patch+json' \\
  -d '[{"op": "add", "path": "/spec/rules/0/to/0/operation/methods/-", "value": "HEAD"}]' | jq .revision

# May it? And why not?
ask='{"target": "spiffe://example.org/ns/shop/sa/orders",
      "request": {"principal": "spiffe://example.org/ns/shop/sa/web", "method": "POST", "path": "/orders"}}'
call "$api/evaluate" -H 'Content-Type: application/json' -d "$ask" | jq .decision.allowed
call "$api/explain" -H 'Content-Type: application/json' -d "$ask" | jq -r .text

# Back to the revision before
call "$api/revisions/2/rollback" -H 'Content-Type: application/json' -d '{"note": "not yet"}' | jq .revision

# An author of the namespace `shop`
call -X PUT "$api/grants/shop-team" -H 'Content-Type: application/json' \\
  -d '{"spiffe_id": "spiffe://example.org/team/shop/*", "role": "author", "namespaces": ["shop"]}' | jq .role
```

From another machine the same paths are at the server's port, for an SVID with a grant (`caadmin svid fetch --write DIR`
writes one). The server's certificate is for its SPIFFE ID and for no host name: a client must see that its chain leads
to the bundle, and that its one URI is `spiffe://<trust domain>/spire/server`. `caadmin policy list --server ADDRESS`
does so. curl cannot, and where it is told to do without (`--insecure`), it does not know whom it talks to:

```text
curl --http1.1 --insecure --cert svid.pem --key svid.key https://burgee.example.org:8081/v1/policy/revisions
```

## Writes

- `ETag` is strong: what has the same content has the same one. What is there changes only with `If-Match` (428 without
  it, 412 where it is another); without `If-Match` a PUT only creates, and with `If-None-Match: *` it says so.
- One write is one revision: all of it holds, or nothing does. `POST /v1/policy/apply` takes many changes at once, and
  with `expected_revision` only on top of that revision.
- `?dry_run=true` validates, holds it against the invariants, and gives warnings, lint findings and the semantic
  difference; nothing is written. Of a grant it says in `effect` what whom it names would gain and lose beside all
  other grants; invariants that would not hold now are refused as by the write, each with a request that shows it.
- With `Idempotency-Key` the same request a second time, within a day, is answered as the first was, and writes nothing.
- What `apply` marked with an `owner` is changed by others only with `force`.

## Refusals

Every refusal is a problem document (RFC 9457) with a stable `reason` ([all of them](../reference/reasons.md)); what is
wrong with a body is in `errors`, each with a code, a JSON pointer, line and column, and a hint. Any route may refuse
with

| Status | When |
|---|---|
| 400 | `REQUEST_INVALID`: a parameter or header; `BODY_MALFORMED`, `BODY_INVALID`, `POLICY_INVALID`: the body |
| 403 | `TIER`: no SVID that holds; `POLICY_FORBIDDEN`: it lacks a grant |
| 404, 405 | there is no such path, or it does not know the verb (`Allow` says which it does) |
| 406, 415 | of the types that are accepted none is had, or the body's is not read |
| 413 | the body is larger than 4 MiB (16 MiB for `apply`, 1 MiB for questions, grants and invariants) |
| 429 | the caller asks or writes too often (`policy.limits` of the configuration); come again after `Retry-After` |
| 503 | the store or the audit log cannot be reached now |

## Lists

Lists have pages: `limit` items, and `next`, which is the `cursor` of the page that follows, as is the `Link` header's
address with `rel="next"` (RFC 8288). What is created or deleted meanwhile neither repeats nor hides another item.
"""
