package main

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Who calls without an X.509-SVID. Every other caller is an identity that an earlier step made.
const (
	adminUDS   = "admin-uds"
	anonymous  = "anonymous-tcp"
	agentAdmin = "agent-admin-uds"
	workload   = "workload"
)

const callTime = 15 * time.Second

// world is what a play has gathered so far: values, keys, identities, connections.
type world struct {
	target      target
	let         map[string]any
	vars        map[string]string
	dry         bool
	keys        map[string]crypto.Signer
	authorities map[string][]byte
	identities  map[string]*tls.Certificate
	connections map[string]*grpc.ClientConn
}

func newWorld(p play) *world {
	return &world{
		target: p.Target, let: p.Let,
		vars: map[string]string{
			"td": p.Target.TrustDomain, "x2048": strings.Repeat("x", 2048),
			"uid": strconv.Itoa(os.Getuid()), "pid": strconv.Itoa(os.Getpid()),
		},
		keys:        map[string]crypto.Signer{},
		authorities: map[string][]byte{},
		identities:  map[string]*tls.Certificate{},
		connections: map[string]*grpc.ClientConn{},
	}
}

func (w *world) close() {
	for _, connection := range w.connections {
		connection.Close()
	}
}

// connection gives the caller's connection; `NAME new` opens another one and keeps that.
func (w *world) connection(who string) (*grpc.ClientConn, error) {
	if who == "" {
		who = adminUDS
	}
	who, fresh := strings.CutSuffix(who, " new")
	if known := w.connections[who]; known != nil {
		if !fresh {
			return known, nil
		}
		known.Close()
	}
	made, err := w.dial(who)
	if err == nil {
		w.connections[who] = made
	}
	return made, err
}

func (w *world) dial(who string) (*grpc.ClientConn, error) {
	large := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20))
	sockets := map[string]string{adminUDS: w.target.Admin, agentAdmin: w.target.AgentAdmin, workload: w.target.Workload}
	if path := sockets[who]; path != "" {
		return grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), large)
	}
	config := &tls.Config{
		MinVersion:            tls.VersionTLS12,
		InsecureSkipVerify:    true, // there is no host name in an SVID: the chain and the ID are verified below
		VerifyPeerCertificate: w.verifyServer,
	}
	if who != anonymous {
		identity := w.identities[who]
		if identity == nil {
			return nil, fmt.Errorf("nobody is called %q yet", who)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return identity, nil }
	}
	return grpc.NewClient("passthrough:///"+w.target.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)), large)
}

func (w *world) verifyServer(raw [][]byte, _ [][]*x509.Certificate) error {
	leaf, err := w.verifyChain(raw)
	if err != nil {
		return err
	}
	want := "spiffe://" + w.target.TrustDomain + "/spire/server"
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != want {
		return fmt.Errorf("the server is %v, not %s", leaf.URIs, want)
	}
	return nil
}

// bundle asks for the server's own bundle.
func (w *world) bundle() (*types.Bundle, error) {
	connection, err := w.connection(adminUDS)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return bundlev1.NewBundleClient(connection).GetBundle(ctx, &bundlev1.GetBundleRequest{})
}

func (w *world) roots() (*x509.CertPool, error) {
	bundle, err := w.bundle()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, authority := range bundle.X509Authorities {
		certificate, err := x509.ParseCertificate(authority.Asn1)
		if err != nil {
			return nil, err
		}
		pool.AddCert(certificate)
	}
	return pool, nil
}

// jwtKey finds a key of the server's own bundle by its id.
func (w *world) jwtKey(kid string) (crypto.PublicKey, error) {
	bundle, err := w.bundle()
	if err != nil {
		return nil, err
	}
	for _, authority := range bundle.JwtAuthorities {
		if authority.KeyId == kid {
			return x509.ParsePKIXPublicKey(authority.PublicKey)
		}
	}
	return nil, errors.New("the bundle has no JWT key " + kid)
}
