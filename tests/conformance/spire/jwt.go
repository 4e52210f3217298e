package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
)

// jwt reads `PATH aud=a,b ttl=SECONDS [alg=ES256] [iss=..] [jti]`, verifies the signature and compares the claims.
func (m *matcher) jwt(path, rest, token string) {
	header, claims, err := m.world.verifyJWT(token)
	if err != nil {
		m.fail(path, "the token: %v", err)
		return
	}
	algorithm := "ES256"
	want := map[string]any{"iat": "*"}
	for _, word := range strings.Fields(rest) {
		what, value, _ := strings.Cut(word, "=")
		switch {
		case strings.HasPrefix(word, "/"):
			want["sub"] = "spiffe://" + m.world.target.TrustDomain + word
		case what == "aud":
			list := []any{}
			for _, name := range strings.Split(value, ",") {
				list = append(list, name)
			}
			want["aud"] = list
		case what == "ttl":
			want["exp"] = "@in " + strings.ReplaceAll(value, "..", " ")
		case what == "iss":
			want["iss"] = value
		case what == "alg":
			algorithm = value
		case what == "jti":
			want["jti"] = "*"
		}
	}
	if exp, ok := claims["exp"].(json.Number); ok {
		claims["exp"] = exp.String()
	}
	inner := &matcher{world: m.world}
	inner.match(path, want, claims)
	inner.match(path+".header", map[string]any{"alg": algorithm, "kid": "*", "typ": "?"}, header)
	m.problems = append(m.problems, inner.problems...)
}

func (w *world) verifyJWT(token string) (header, claims map[string]any, err error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, nil, fmt.Errorf("%d parts", len(parts))
	}
	for i, into := range []*map[string]any{&header, &claims} {
		raw, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return nil, nil, err
		}
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.UseNumber()
		if err := decoder.Decode(into); err != nil {
			return nil, nil, err
		}
	}
	kid, _ := header["kid"].(string)
	key, err := w.jwtKey(kid)
	if err != nil {
		return nil, nil, err
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return nil, nil, err
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	switch public := key.(type) {
	case *ecdsa.PublicKey:
		half := len(signature) / 2
		r, s := new(big.Int).SetBytes(signature[:half]), new(big.Int).SetBytes(signature[half:])
		if len(signature) != 64 || !ecdsa.Verify(public, digest[:], r, s) {
			return nil, nil, fmt.Errorf("the signature is wrong")
		}
	case *rsa.PublicKey:
		if err := rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature); err != nil {
			return nil, nil, err
		}
	default:
		return nil, nil, fmt.Errorf("a key of type %T", key)
	}
	return header, claims, nil
}
