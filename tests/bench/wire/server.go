package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// dial speaks TLS to the server as SPIRE's agent does, with the agent's SVID when there is one. The benchmark trusts
// whoever listens: it measures, it does not attest the server.
func dial(o options, withSVID bool) (*grpc.ClientConn, error) {
	conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
	if withSVID {
		pair, err := tls.LoadX509KeyPair(filepath.Join(o.dir, "agent.pem"), filepath.Join(o.dir, "agent.key"))
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return grpc.NewClient("passthrough:///"+o.addr, grpc.WithTransportCredentials(credentials.NewTLS(conf)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)))
}

func local(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

func newCSR(id string) ([]byte, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{Country: []string{"US"}, Organization: []string{"SPIRE"}}}
	if id != "" {
		uri, err := url.Parse(id)
		if err != nil {
			return nil, nil, err
		}
		template.URIs = []*url.URL{uri}
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	return csr, key, err
}

func attest(o options) (report, error) {
	if o.token == "" {
		admin, err := local(o.admin)
		if err != nil {
			return nil, err
		}
		defer admin.Close()
		token, err := agentv1.NewAgentClient(admin).CreateJoinToken(context.Background(), &agentv1.CreateJoinTokenRequest{Ttl: 600})
		if err != nil {
			return nil, err
		}
		o.token = token.Value
	}
	conn, err := dial(o, false)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	csr, key, err := newCSR("")
	if err != nil {
		return nil, err
	}
	start := time.Now()
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(context.Background())
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{
		Params: &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: "join_token", Payload: []byte(o.token)},
			Params: &agentv1.AgentX509SVIDParams{Csr: csr},
		}}}); err != nil {
		return nil, err
	}
	answer, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	took := time.Since(start)
	svid := answer.GetResult().GetSvid()
	if svid == nil {
		return nil, errors.New("no SVID in the answer")
	}
	var chain []byte
	for _, der := range svid.CertChain {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(o.dir, "agent.pem"), chain, 0o600); err != nil {
		return nil, err
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(o.dir, "agent.key"), pemKey, 0o600); err != nil {
		return nil, err
	}
	return report{"path": svid.Id.Path, "ms": float64(took.Microseconds()) / 1000}, nil
}

func entry(o options, name string) *types.Entry {
	kind, value, _ := strings.Cut(o.selector, ":")
	return &types.Entry{
		SpiffeId:  &types.SPIFFEID{TrustDomain: o.td, Path: "/" + o.prefix + "/" + name},
		ParentId:  &types.SPIFFEID{TrustDomain: o.td, Path: o.parent},
		Selectors: []*types.Selector{{Type: kind, Value: value}},
	}
}

func entries(o options) (report, error) {
	conn, err := local(o.admin)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client := entryv1.NewEntryClient(conn)
	var ids []string
	var took time.Duration
	for done := 0; done < o.n; done += 1000 {
		var ask []*types.Entry
		for i := done; i < min(o.n, done+1000); i++ {
			ask = append(ask, entry(o, fmt.Sprint(i)))
		}
		start := time.Now()
		answer, err := client.BatchCreateEntry(context.Background(), &entryv1.BatchCreateEntryRequest{Entries: ask})
		if err != nil {
			return nil, err
		}
		took += time.Since(start)
		for _, r := range answer.Results {
			if c := codes.Code(r.Status.Code); c != codes.OK && c != codes.AlreadyExists {
				return nil, errors.New(r.Status.Message)
			}
			ids = append(ids, r.Entry.Id)
		}
	}
	if o.ids != "" {
		if err := os.WriteFile(o.ids, []byte(strings.Join(ids, "\n")+"\n"), 0o600); err != nil {
			return nil, err
		}
	}
	return report{"n": len(ids), "seconds": took.Seconds()}, nil
}

func readIDs(o options) ([]string, error) {
	raw, err := os.ReadFile(o.ids)
	return strings.Fields(string(raw)), err
}

// spread runs o.calls calls over o.callers connections and tells wall time, and CPU time of the process at o.pid.
func spread(o options, call func(conn *grpc.ClientConn, i int) error) (wall, used float64, each []time.Duration, err error) {
	conns := make([]*grpc.ClientConn, o.callers)
	for i := range conns {
		if conns[i], err = dial(o, true); err != nil {
			return
		}
		defer conns[i].Close()
		if err = call(conns[i], 0); err != nil { // the handshake is not what is measured
			return
		}
	}
	var next atomic.Int64
	var lock sync.Mutex
	var group sync.WaitGroup
	var first error
	before, start := cpu(o.pid), time.Now()
	for _, conn := range conns {
		group.Add(1)
		go func() {
			defer group.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= o.calls {
					return
				}
				began := time.Now()
				err := call(conn, i)
				lock.Lock()
				each = append(each, time.Since(began))
				if err != nil && first == nil {
					first = err
				}
				lock.Unlock()
			}
		}()
	}
	group.Wait()
	return time.Since(start).Seconds(), cpu(o.pid) - before, each, first
}

func batch(o options) (report, error) {
	ids, err := readIDs(o)
	if err != nil {
		return nil, err
	}
	params := make([]*svidv1.NewX509SVIDParams, o.size)
	for i := range params {
		csr, _, err := newCSR("spiffe://" + o.td + "/bench")
		if err != nil {
			return nil, err
		}
		params[i] = &svidv1.NewX509SVIDParams{EntryId: ids[i%len(ids)], Csr: csr}
	}
	wall, used, _, err := spread(o, func(conn *grpc.ClientConn, _ int) error {
		answer, err := svidv1.NewSVIDClient(conn).BatchNewX509SVID(context.Background(),
			&svidv1.BatchNewX509SVIDRequest{Params: params})
		if err != nil {
			return err
		}
		for _, r := range answer.Results {
			if r.Status.Code != 0 {
				return errors.New(r.Status.Message)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	total := float64(o.size * o.calls)
	return report{"svids": total, "per_second": total / wall, "cpu_us_each": used / total * 1e6, "wall_us_each": wall / total * 1e6}, nil
}

func jwt(o options) (report, error) {
	ids, err := readIDs(o)
	if err != nil {
		return nil, err
	}
	wall, used, each, err := spread(o, func(conn *grpc.ClientConn, i int) error {
		_, err := svidv1.NewSVIDClient(conn).NewJWTSVID(context.Background(),
			&svidv1.NewJWTSVIDRequest{EntryId: ids[i%len(ids)], Audience: []string{"bench"}})
		return err
	})
	if err != nil {
		return nil, err
	}
	out := percentiles(each)
	out["per_second"], out["cpu_us_each"] = float64(o.calls)/wall, used/float64(o.calls)*1e6
	return out, nil
}
