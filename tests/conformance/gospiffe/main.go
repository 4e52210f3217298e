// gospiffe is a workload as people write them with go-spiffe. Every verb prints JSON lines.
//
//	conformance-gospiffe -socket S fetch               one X.509 context, with every SVID verified against its bundle
//	conformance-gospiffe -socket S watch               an X.509 context a line, until killed
//	conformance-gospiffe -socket S watchjwt            the JWT bundles a line, until killed
//	conformance-gospiffe -socket S jwt AUDIENCE [ID]   tokens, validated by the agent and by go-spiffe itself
//	conformance-gospiffe -socket S validate AUDIENCE TOKEN
//	conformance-gospiffe -socket S bundles             the JWT bundles
//	conformance-gospiffe -socket S serve ID            an mTLS server for that peer; prints its address, then each caller's ID
//	conformance-gospiffe -socket S call ADDRESS ID     an mTLS call to that peer; prints the server's ID and its words
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sort"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const patience = 20 * time.Second

type object map[string]any

func say(value object) { _ = json.NewEncoder(os.Stdout).Encode(value) }

func main() {
	socket := flag.String("socket", "", "the Workload API's socket")
	flag.Parse()
	verbs := map[string]func(context.Context, *workloadapi.Client, []string) error{
		"fetch": fetch, "watch": watch, "watchjwt": watchJWT, "jwt": jwt, "validate": validate, "bundles": bundles, "serve": serve, "call": call,
	}
	verb := verbs[flag.Arg(0)]
	if verb == nil {
		fail(errors.New("no such verb"))
	}
	ctx := context.Background()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr("unix://"+*socket))
	if err == nil {
		err = verb(ctx, client, flag.Args()[1:])
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	say(object{"error": err.Error()})
	os.Exit(1)
}

// described verifies every SVID of an X.509 context against the bundles that came with it, and tells what is in it.
func described(c *workloadapi.X509Context) (object, error) {
	var svids []object
	for _, svid := range c.SVIDs {
		id, _, err := x509svid.Verify(svid.Certificates, c.Bundles)
		if err != nil {
			return nil, err
		}
		leaf := svid.Certificates[0]
		svids = append(svids, object{"id": id.String(), "hint": svid.Hint, "chain": len(svid.Certificates),
			"dns": leaf.DNSNames, "not_after": leaf.NotAfter.Unix()})
	}
	roots := object{}
	for _, bundle := range c.Bundles.Bundles() {
		roots[bundle.TrustDomain().Name()] = len(bundle.X509Authorities())
	}
	return object{"svids": svids, "bundles": roots}, nil
}

func fetch(ctx context.Context, client *workloadapi.Client, _ []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	got, err := client.FetchX509Context(ctx)
	if err != nil {
		return err
	}
	out, err := described(got)
	if err == nil {
		say(out)
	}
	return err
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	out, err := described(c)
	if err != nil {
		out = object{"error": err.Error()}
	}
	say(out)
}

func (watcher) OnX509ContextWatchError(err error) { say(object{"watch_error": err.Error()}) }

func (watcher) OnJWTBundlesUpdate(set *jwtbundle.Set) { say(keysOf(set)) }

func (watcher) OnJWTBundlesWatchError(err error) { say(object{"watch_error": err.Error()}) }

func watch(ctx context.Context, client *workloadapi.Client, _ []string) error {
	return client.WatchX509Context(ctx, watcher{})
}

func watchJWT(ctx context.Context, client *workloadapi.Client, _ []string) error {
	return client.WatchJWTBundles(ctx, watcher{})
}

func keysOf(set *jwtbundle.Set) object {
	out := object{}
	for _, bundle := range set.Bundles() {
		var kids []string
		for kid := range bundle.JWTAuthorities() {
			kids = append(kids, kid)
		}
		sort.Strings(kids)
		out[bundle.TrustDomain().Name()] = kids
	}
	return object{"bundles": out}
}

func bundles(ctx context.Context, client *workloadapi.Client, _ []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	set, err := client.FetchJWTBundles(ctx)
	if err == nil {
		say(keysOf(set))
	}
	return err
}

func jwt(ctx context.Context, client *workloadapi.Client, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	params := jwtsvid.Params{Audience: args[0]}
	if len(args) > 1 {
		id, err := spiffeid.FromString(args[1])
		if err != nil {
			return err
		}
		params.Subject = id
	}
	got, err := client.FetchJWTSVIDs(ctx, params)
	if err != nil {
		return err
	}
	set, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	var out []object
	for _, svid := range got {
		token := svid.Marshal()
		byAgent, err := client.ValidateJWTSVID(ctx, token, args[0])
		if err != nil {
			return fmt.Errorf("the agent: %w", err)
		}
		byUs, err := jwtsvid.ParseAndValidate(token, set, []string{args[0]})
		if err != nil {
			return fmt.Errorf("go-spiffe: %w", err)
		}
		if byUs.ID != byAgent.ID {
			return fmt.Errorf("%s is not %s", byUs.ID, byAgent.ID)
		}
		out = append(out, object{"id": svid.ID.String(), "hint": svid.Hint, "audience": svid.Audience,
			"expires": svid.Expiry.Unix(), "token": token})
	}
	say(object{"svids": out})
	return nil
}

func validate(ctx context.Context, client *workloadapi.Client, args []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	svid, err := client.ValidateJWTSVID(ctx, args[1], args[0])
	if err == nil {
		say(object{"id": svid.ID.String()})
	}
	return err
}

func source(ctx context.Context, client *workloadapi.Client) (*workloadapi.X509Source, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return workloadapi.NewX509Source(ctx, workloadapi.WithClient(client))
}

func serve(ctx context.Context, client *workloadapi.Client, args []string) error {
	peer, err := spiffeid.FromString(args[0])
	if err != nil {
		return err
	}
	x509, err := source(ctx, client)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	say(object{"address": listener.Addr().String()})
	server := &http.Server{
		TLSConfig:         tlsconfig.MTLSServerConfig(x509, x509, tlsconfig.AuthorizeID(peer)),
		ReadHeaderTimeout: patience,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			id, err := x509svid.IDFromCert(r.TLS.PeerCertificates[0])
			if err != nil {
				http.Error(w, err.Error(), http.StatusForbidden)
				return
			}
			say(object{"caller": id.String()})
			fmt.Fprintf(w, "hello %s", id)
		}),
	}
	return server.ServeTLS(listener, "", "")
}

func call(ctx context.Context, client *workloadapi.Client, args []string) error {
	peer, err := spiffeid.FromString(args[1])
	if err != nil {
		return err
	}
	x509, err := source(ctx, client)
	if err != nil {
		return err
	}
	defer x509.Close()
	caller := &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig: tlsconfig.MTLSClientConfig(x509, x509, tlsconfig.AuthorizeID(peer))}}
	answer, err := caller.Get("https://" + args[0])
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	words, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	id, err := x509svid.IDFromCert(answer.TLS.PeerCertificates[0])
	if err == nil {
		say(object{"server": id.String(), "words": string(words)})
	}
	return err
}
