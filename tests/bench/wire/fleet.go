package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// raw passes message bytes through: the push service is Burgee's own, and its one request is easily written by hand.
type raw struct{}

func (raw) Name() string                       { return "proto" }
func (raw) Marshal(v any) ([]byte, error)      { return *(v.(*[]byte)), nil }
func (raw) Unmarshal(data []byte, v any) error { *(v.(*[]byte)) = data; return nil }

// subscription is burgee.node.v1.SyncRequest{subscribe: {agent_version: "bench"}}: a snapshot is wanted.
func subscription() []byte {
	inner := protowire.AppendString(protowire.AppendTag(nil, 3, protowire.BytesType), "bench")
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner)
}

func attached(o options, ctx context.Context) (*grpc.ClientConn, error) {
	if _, err := attest(o); err != nil {
		return nil, err
	}
	conn, err := dial(o, true)
	if err != nil {
		return nil, err
	}
	shape := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := conn.NewStream(ctx, shape, "/burgee.node.v1.Node/Sync", grpc.ForceCodec(raw{}))
	if err != nil {
		return conn, err
	}
	ask := subscription()
	if err := stream.SendMsg(&ask); err != nil {
		return conn, err
	}
	var first []byte
	if err := stream.RecvMsg(&first); err != nil {
		return conn, err
	}
	go func() {
		for stream.RecvMsg(new([]byte)) == nil {
		}
	}()
	return conn, nil
}

// fleet attests o.n agents, lets each hold its push stream, and tells what the server at o.pid costs while nothing happens.
func fleet(o options) (report, error) {
	if o.pid == 0 {
		return nil, errors.New("fleet needs -pid")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	start := time.Now()
	for i := range o.n {
		mine := o
		mine.dir = filepath.Join(o.dir, strconv.Itoa(i))
		if err := os.MkdirAll(mine.dir, 0o700); err != nil {
			return nil, err
		}
		conn, err := attached(mine, ctx)
		if conn != nil {
			defer conn.Close()
		}
		if err != nil {
			return nil, err
		}
	}
	joined := time.Since(start)
	time.Sleep(2 * time.Second)
	before, from := cpu(o.pid), time.Now()
	time.Sleep(time.Duration(o.seconds) * time.Second)
	used := cpu(o.pid) - before
	return report{"agents": o.n, "joined_s": joined.Seconds(), "idle_percent": used / time.Since(from).Seconds() * 100}, nil
}
