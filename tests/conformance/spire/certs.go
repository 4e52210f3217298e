package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"
)

// key gives the key of that name, made at its first use. The name's part before a dot is the algorithm.
func (w *world) key(name string) (crypto.Signer, error) {
	if known := w.keys[name]; known != nil {
		return known, nil
	}
	var made crypto.Signer
	var err error
	switch algorithm, _, _ := strings.Cut(name, "."); algorithm {
	case "p256":
		made, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "p384":
		made, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "rsa2048":
		made, err = rsa.GenerateKey(rand.Reader, 2048)
	case "rsa1024":
		made, err = rsa.GenerateKey(rand.Reader, 1024)
	default:
		err = fmt.Errorf("no algorithm for the key %q", name)
	}
	if err == nil {
		w.keys[name] = made
	}
	return made, err
}

// uri reads `/path` as an ID of our trust domain and anything else as it stands.
func (w *world) uri(text string) (*url.URL, error) {
	if strings.HasPrefix(text, "/") || text == "" {
		text = "spiffe://" + w.target.TrustDomain + text
	}
	return url.Parse(text)
}

// csr reads words: key=NAME, uri=..., dns=..., cn=..., broken.
func (w *world) csr(words []string) ([]byte, error) {
	template := &x509.CertificateRequest{}
	name, broken := "p256", false
	for _, word := range words {
		what, value, _ := strings.Cut(word, "=")
		switch what {
		case "key":
			name = value
		case "uri":
			uri, err := w.uri(value)
			if err != nil {
				return nil, err
			}
			template.URIs = append(template.URIs, uri)
		case "dns":
			template.DNSNames = append(template.DNSNames, value)
		case "cn":
			template.Subject = pkix.Name{CommonName: value, Organization: []string{"somebody"}}
		case "broken":
			broken = true
		default:
			return nil, fmt.Errorf("a CSR has no %q", word)
		}
	}
	key, err := w.key(name)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err == nil && broken {
		der[len(der)-1] ^= 1
	}
	return der, err
}

// ca makes a self-signed authority of a trust domain, the same one each time it is asked for in a play.
func (w *world) ca(domain string) ([]byte, error) {
	if known := w.authorities[domain]; known != nil {
		return known, nil
	}
	key, err := w.key("p256.ca." + domain)
	if err != nil {
		return nil, err
	}
	der, err := w.certificate(domain, "", key, nil, nil)
	if err == nil {
		w.authorities[domain] = der
	}
	return der, err
}

// certificate makes a CA without parent, or a leaf with one.
func (w *world) certificate(domain, path string, key crypto.Signer, parent *x509.Certificate, signer crypto.Signer) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Country: []string{"US"}, Organization: []string{domain}},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		URIs:         []*url.URL{{Scheme: "spiffe", Host: domain, Path: path}},
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if parent == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
		parent, signer = template, key
	}
	return x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
}

// stranger makes an identity of our trust domain's name under an authority that nobody knows.
func (w *world) stranger(path string) (*tls.Certificate, error) {
	caKey, err := w.key("p256.stranger.ca")
	if err != nil {
		return nil, err
	}
	caDER, err := w.certificate(w.target.TrustDomain, "", caKey, nil, nil)
	if err != nil {
		return nil, err
	}
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, err
	}
	key, err := w.key("p256.stranger")
	if err != nil {
		return nil, err
	}
	leaf, err := w.certificate(w.target.TrustDomain, path, key, ca, caKey)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf, caDER}, PrivateKey: key}, nil
}

// verifyChain checks a chain, leaf first, against the roots of the server's own bundle.
func (w *world) verifyChain(ders [][]byte) (*x509.Certificate, error) {
	if len(ders) == 0 {
		return nil, errors.New("an empty chain")
	}
	roots, err := w.roots()
	if err != nil {
		return nil, err
	}
	between := x509.NewCertPool()
	var leaf *x509.Certificate
	for i, der := range ders {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			leaf = certificate
		} else {
			between.AddCert(certificate)
		}
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return leaf, err
}
