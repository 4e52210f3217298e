package main

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

const (
	patience    = 2 * time.Minute
	taintSpread = time.Second
)

// node is one agent with SVIDs for its entries, which follows the push service as a real one does.
type node struct {
	conn   *grpc.ClientConn
	ids    []string
	issuer string
	clean  chan time.Time
}

// taint lets o.n agents of o.size SVIDs each follow a server, rotates its X.509 authority, taints the old one, and tells
// how long it takes until every SVID that hung on it is replaced.
func taint(o options) (report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	nodes, err := crowd(o, ctx)
	if err != nil {
		return nil, err
	}
	admin, err := local(o.admin)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	old, err := rotate(localauthorityv1.NewLocalAuthorityClient(admin), ctx)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if _, err := localauthorityv1.NewLocalAuthorityClient(admin).TaintX509Authority(ctx,
		&localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old}); err != nil {
		return nil, err
	}
	var took []time.Duration
	for _, n := range nodes {
		select {
		case at, ok := <-n.clean:
			if !ok {
				return nil, errors.New("an agent's stream ended")
			}
			took = append(took, at.Sub(start))
		case <-ctx.Done():
			return nil, fmt.Errorf("%d of %d agents replaced their SVIDs", len(took), o.n)
		}
	}
	out := percentiles(took)
	out["svids"] = o.n * o.size
	return out, nil
}

// rotate brings a fresh X.509 authority to the top and gives the ID of the one before, waiting for whoever is behind.
func rotate(client localauthorityv1.LocalAuthorityClient, ctx context.Context) (string, error) {
	state, err := client.GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
	if err != nil {
		return "", err
	}
	fresh, err := client.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		return "", err
	}
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		_, err = client.ActivateX509Authority(ctx,
			&localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: fresh.PreparedAuthority.AuthorityId})
		if err == nil || time.Now().After(end) {
			return state.Active.AuthorityId, err
		}
	}
}

// crowd lets o.n agents of o.size SVIDs each follow a server until ctx ends.
func crowd(o options, ctx context.Context) ([]*node, error) {
	nodes := make([]*node, o.n)
	for i := range nodes {
		mine := o
		mine.dir, mine.prefix = filepath.Join(o.dir, strconv.Itoa(i)), fmt.Sprintf("crowd-%d", i)
		var err error
		if nodes[i], err = join(mine, ctx); err != nil {
			return nil, fmt.Errorf("agent %d: %w", i, err)
		}
		context.AfterFunc(ctx, func() { nodes[i].conn.Close() })
	}
	return nodes, nil
}

// hold prints one line when o.n agents of o.size SVIDs each follow a server, and keeps them until its input ends, for ten
// minutes at most.
func hold(o options) (report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*patience)
	defer cancel()
	start := time.Now()
	nodes, err := crowd(o, ctx)
	if err != nil {
		return nil, err
	}
	_ = json.NewEncoder(os.Stdout).Encode(report{"joined_s": time.Since(start).Seconds()})
	_, _ = io.Copy(io.Discard, os.Stdin)
	for i, n := range nodes {
		select {
		case <-n.clean:
			return nil, fmt.Errorf("the stream of agent %d ended, or its SVIDs were tainted", i)
		default:
		}
	}
	return report{"agents": o.n, "svids": o.n * o.size}, nil
}

func join(o options, ctx context.Context) (*node, error) {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	joined, err := attest(o)
	if err != nil {
		return nil, err
	}
	o.parent, o.ids = joined["path"].(string), filepath.Join(o.dir, "ids")
	o.n = o.size
	if _, err := entries(o); err != nil {
		return nil, err
	}
	n := &node{clean: make(chan time.Time, 1)}
	if n.ids, err = readIDs(o); err != nil {
		return nil, err
	}
	if n.conn, err = dial(o, true); err != nil {
		return nil, err
	}
	if err := n.issue(ctx); err != nil {
		return nil, err
	}
	shape := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := n.conn.NewStream(ctx, shape, "/burgee.node.v1.Node/Sync", grpc.ForceCodec(raw{}))
	if err != nil {
		return nil, err
	}
	ask := subscription()
	if err := stream.SendMsg(&ask); err != nil {
		return nil, err
	}
	go n.follow(stream, ctx)
	return n, nil
}

// issue asks for an SVID for each entry, with fresh keys, and notes who signed.
func (n *node) issue(ctx context.Context) error {
	ask := &svidv1.BatchNewX509SVIDRequest{}
	for _, id := range n.ids {
		csr, _, err := newCSR("")
		if err != nil {
			return err
		}
		ask.Params = append(ask.Params, &svidv1.NewX509SVIDParams{EntryId: id, Csr: csr})
	}
	var answer *svidv1.BatchNewX509SVIDResponse
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var err error
		answer, err = svidv1.NewSVIDClient(n.conn).BatchNewX509SVID(ctx, ask)
		if err == nil && answer.Results[0].Status.Code == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("no SVIDs: %v", err)
		}
	}
	for _, result := range answer.Results {
		if result.Status.Code != 0 {
			return errors.New(result.Status.Message)
		}
		leaf, err := x509.ParseCertificate(result.Svid.CertChain[0])
		if err != nil {
			return err
		}
		n.issuer = hex.EncodeToString(leaf.AuthorityKeyId)
	}
	return nil
}

// follow acknowledges each push, and replaces the SVIDs when who signed them is tainted: at a random moment within taintSpread,
// as our agents do.
func (n *node) follow(stream grpc.ClientStream, ctx context.Context) {
	defer close(n.clean)
	for {
		var push []byte
		if stream.RecvMsg(&push) != nil {
			return
		}
		revision, bundle := readPush(push)
		acks := [][]byte{ack("entry", revision, nil)}
		if bundle != nil {
			acks = append(acks, ack("bundle", revision, bundle))
		}
		for _, message := range acks {
			if stream.SendMsg(&message) != nil {
				return
			}
		}
		for _, root := range bundle.GetX509Authorities() {
			if root.Tainted && keyID(root) == n.issuer {
				time.Sleep(rand.N(taintSpread))
				if n.issue(ctx) != nil {
					return
				}
				n.clean <- time.Now()
			}
		}
	}
}

func keyID(root *types.X509Certificate) string {
	cert, err := x509.ParseCertificate(root.Asn1)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(cert.SubjectKeyId)
}

// readPush takes the revision and the bundle, if there is one, out of a burgee.node.v1.SyncResponse.
func readPush(push []byte) (revision uint64, bundle *types.Bundle) {
	each(push, func(number protowire.Number, varint uint64, value []byte) {
		switch number {
		case 2:
			revision = varint
		case 4:
			kind, payload := "", []byte(nil)
			each(value, func(number protowire.Number, _ uint64, value []byte) {
				switch number {
				case 1:
					kind = string(value)
				case 3:
					payload = value
				}
			})
			if kind == "bundle" {
				found := &types.Bundle{}
				if proto.Unmarshal(payload, found) == nil {
					bundle = found
				}
			}
		}
	})
	return revision, bundle
}

func each(message []byte, field func(number protowire.Number, varint uint64, value []byte)) {
	for len(message) > 0 {
		number, kind, size := protowire.ConsumeTag(message)
		if size < 0 {
			return
		}
		message = message[size:]
		switch kind {
		case protowire.VarintType:
			value, size := protowire.ConsumeVarint(message)
			field(number, value, nil)
			message = message[max(size, 0):]
		case protowire.BytesType:
			value, size := protowire.ConsumeBytes(message)
			field(number, 0, value)
			message = message[max(size, 0):]
		default:
			return
		}
	}
}

// ack is burgee.node.v1.SyncRequest{ack: …}; of a bundle also what is held.
func ack(kind string, revision uint64, bundle *types.Bundle) []byte {
	inner := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), kind)
	inner = protowire.AppendVarint(protowire.AppendTag(inner, 2, protowire.VarintType), revision)
	if bundle != nil {
		inner = protowire.AppendVarint(protowire.AppendTag(inner, 7, protowire.VarintType), bundle.SequenceNumber)
		for _, root := range bundle.X509Authorities {
			inner = protowire.AppendString(protowire.AppendTag(inner, 8, protowire.BytesType), keyID(root))
		}
		for _, key := range bundle.JwtAuthorities {
			inner = protowire.AppendString(protowire.AppendTag(inner, 8, protowire.BytesType), key.KeyId)
		}
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), inner)
}
