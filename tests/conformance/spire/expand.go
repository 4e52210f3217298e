package main

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"strconv"
	"strings"
)

var variable = regexp.MustCompile(`\$\{(\w+)\}`)

// substitute puts values in the place of ${name}.
func (w *world) substitute(text string) (string, error) {
	var missing error
	out := variable.ReplaceAllStringFunc(text, func(found string) string {
		name := found[2 : len(found)-1]
		value, known := w.vars[name]
		if !known && w.dry {
			return "0"
		}
		if !known {
			missing = fmt.Errorf("%s has no value: an earlier step did not give it", found)
		}
		return value
	})
	return out, missing
}

// expand turns the cases' notation into plain values. Strings that begin with @ are macros; those that only an
// expectation knows are left for the matcher.
func (w *world) expand(value any) (any, error) {
	switch v := value.(type) {
	case string:
		text, err := w.substitute(v)
		if err != nil || !strings.HasPrefix(text, "@") {
			return text, err
		}
		return w.macro(text)
	case []any:
		return w.expandList(v)
	case map[string]any:
		return w.expandMap(v)
	}
	return value, nil
}

func (w *world) expandList(list []any) (any, error) {
	out := []any{}
	for _, item := range list {
		times, of, repeated := repetition(item)
		if !repeated {
			expanded, err := w.expand(item)
			if err != nil {
				return nil, err
			}
			out = append(out, expanded)
			continue
		}
		for i := range times {
			w.vars["i"] = strconv.Itoa(i)
			expanded, err := w.expand(of)
			if err != nil {
				return nil, err
			}
			out = append(out, expanded)
		}
	}
	return out, nil
}

// repetition reads {"@times": 3, "of": item}: the item three times, with ${i} counting from 0.
func repetition(item any) (times int, of any, repeated bool) {
	table, _ := item.(map[string]any)
	number, ok := table["@times"].(json.Number)
	if !ok {
		return 0, nil, false
	}
	count, err := number.Int64()
	return int(count), table["of"], err == nil
}

func (w *world) expandMap(table map[string]any) (any, error) {
	out := map[string]any{}
	if name, ok := table["@with"].(string); ok {
		base, known := w.let[name]
		if !known {
			return nil, fmt.Errorf("nothing is called %q in `let`", name)
		}
		expanded, err := w.expand(base)
		if err != nil {
			return nil, err
		}
		inner, ok := expanded.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%q in `let` is no object", name)
		}
		maps.Copy(out, inner)
	}
	for key, item := range table {
		if key == "@with" {
			continue
		}
		expanded, err := w.expand(item)
		if err != nil {
			return nil, err
		}
		out[key] = expanded
	}
	return out, nil
}

func encoded(der []byte, err error) (any, error) { return base64.StdEncoding.EncodeToString(der), err }

func (w *world) macro(text string) (any, error) {
	name, rest, _ := strings.Cut(text[1:], " ")
	words := strings.Fields(rest)
	switch name {
	case "id": // an ID of our trust domain, or `@id PATH TRUST-DOMAIN`
		return w.id(rest), nil
	case "sel":
		return selectors(words), nil
	case "mask":
		mask := map[string]any{}
		for _, word := range words {
			mask[word] = true
		}
		return mask, nil
	case "x":
		count, err := strconv.Atoi(rest)
		return strings.Repeat("x", count), err
	case "bytes":
		return encoded([]byte(rest), nil)
	case "csr":
		return encoded(w.csr(words))
	case "ca":
		var all []byte
		for _, domain := range words {
			der, err := w.ca(domain)
			if err != nil {
				return nil, err
			}
			all = append(all, der...)
		}
		return encoded(all, nil)
	case "pkix":
		return encoded(w.pkix(rest))
	case "jwk":
		return w.jwk(words)
	case "fed":
		return w.federated(words)
	}
	return text, nil
}

func (w *world) id(rest string) map[string]any {
	path, domain, named := strings.Cut(rest, "|")
	if !named {
		domain = w.target.TrustDomain
	}
	out := map[string]any{}
	if domain != "" {
		out["trustDomain"] = domain
	}
	if path != "" {
		out["path"] = path
	}
	return out
}

func selectors(words []string) []any {
	out := []any{}
	for _, word := range words {
		kind, value, _ := strings.Cut(word, ":")
		out = append(out, map[string]any{"type": kind, "value": value})
	}
	return out
}

func (w *world) pkix(name string) ([]byte, error) {
	key, err := w.key("p256." + name)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key.Public())
}

// jwk reads `KEY-ID [tainted]`.
func (w *world) jwk(words []string) (any, error) {
	if len(words) == 0 {
		return nil, errors.New("a JWK needs a key id")
	}
	key, err := encoded(w.pkix("jwk." + words[0]))
	out := map[string]any{"publicKey": key, "keyId": words[0], "expiresAt": "4102444800"}
	if len(words) > 1 {
		out["tainted"] = true
	}
	return out, err
}

// federated reads `NAME HINT SEQUENCE [AUTHORITY]`: a bundle of one CA and one JWT key.
func (w *world) federated(words []string) (any, error) {
	if len(words) < 3 {
		return nil, errors.New("a federated bundle is `@fed NAME HINT SEQUENCE`")
	}
	der, err := w.ca("fed.org")
	if err != nil {
		return nil, err
	}
	key, err := w.jwk([]string{"fedkey"})
	return map[string]any{
		"trustDomain":     words[0],
		"x509Authorities": []any{map[string]any{"asn1": base64.StdEncoding.EncodeToString(der)}},
		"jwtAuthorities":  []any{key},
		"refreshHint":     words[1],
		"sequenceNumber":  words[2],
	}, err
}
