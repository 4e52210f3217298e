package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

type stream = grpc.ServerStreamingClient[workload.X509SVIDResponse]

// open attaches to the Workload API on a connection of its own, as a process of its own would.
func open(o options, ctx context.Context) (*grpc.ClientConn, stream, error) {
	conn, err := local(o.sock)
	if err != nil {
		return nil, nil, err
	}
	s, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(withHeader(ctx), &workload.X509SVIDRequest{})
	return conn, s, err
}

func attach(o options) (report, error) {
	var took []time.Duration
	var svids int
	for range o.n {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		start := time.Now()
		conn, s, err := open(o, ctx)
		if err == nil {
			var answer *workload.X509SVIDResponse
			if answer, err = s.Recv(); err == nil {
				took = append(took, time.Since(start))
				svids = len(answer.Svids)
			}
			conn.Close()
		}
		cancel()
		if err != nil {
			return nil, err
		}
	}
	out := percentiles(took)
	out["svids"] = svids
	return out, nil
}

// watch reads a stream until it shows the SPIFFE ID, for each ID that is sent.
func watch(s stream, seen chan<- string) {
	known := map[string]bool{}
	for {
		answer, err := s.Recv()
		if err != nil {
			close(seen)
			return
		}
		for _, svid := range answer.Svids {
			if !known[svid.SpiffeId] {
				known[svid.SpiffeId] = true
				seen <- svid.SpiffeId
			}
		}
	}
}

func create(client entryv1.EntryClient, o options, name string) (*types.Entry, error) {
	answer, err := client.BatchCreateEntry(context.Background(),
		&entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{entry(o, name)}})
	if err != nil {
		return nil, err
	}
	if answer.Results[0].Status.Code != 0 {
		return nil, fmt.Errorf("%s", answer.Results[0].Status.Message)
	}
	return answer.Results[0].Entry, nil
}

// measured opens streams, creates o.n entries one after the other, and tells for each how long every stream took.
func measured(o options, streams int) (first, last []time.Duration, err error) {
	admin, err := local(o.admin)
	if err != nil {
		return nil, nil, err
	}
	defer admin.Close()
	client := entryv1.NewEntryClient(admin)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	channels := make([]chan string, streams)
	for i := range channels {
		conn, s, err := open(o, ctx)
		if err != nil {
			return nil, nil, err
		}
		defer conn.Close()
		channels[i] = make(chan string, 4096)
		go watch(s, channels[i])
		<-channels[i] // attached: the entry that was there before is seen
	}
	var made []string
	defer func() {
		_, _ = client.BatchDeleteEntry(context.Background(), &entryv1.BatchDeleteEntryRequest{Ids: made})
	}()
	for i := range o.n {
		name := fmt.Sprintf("%d-%d", time.Now().UnixNano(), i)
		want := fmt.Sprintf("spiffe://%s/%s/%s", o.td, o.prefix, name)
		arrived := make(chan time.Time, streams)
		var group sync.WaitGroup
		start := time.Now()
		for _, c := range channels {
			group.Add(1)
			go func() {
				defer group.Done()
				for id := range c {
					if id == want {
						arrived <- time.Now()
						return
					}
				}
			}()
		}
		e, err := create(client, o, name)
		if err != nil {
			return nil, nil, err
		}
		made = append(made, e.Id)
		group.Wait()
		close(arrived)
		var lo, hi time.Duration
		count := 0
		for t := range arrived {
			d := t.Sub(start)
			if count == 0 || d < lo {
				lo = d
			}
			hi = max(hi, d)
			count++
		}
		if count < streams {
			return nil, nil, fmt.Errorf("only %d of %d streams saw %s", count, streams, want)
		}
		first, last = append(first, lo), append(last, hi)
	}
	return first, last, nil
}

func latency(o options) (report, error) {
	_, last, err := measured(o, 1)
	if err != nil {
		return nil, err
	}
	return percentiles(last), nil
}

func fanout(o options) (report, error) {
	first, last, err := measured(o, o.streams)
	if err != nil {
		return nil, err
	}
	return report{"streams": o.streams, "first": percentiles(first), "last": percentiles(last)}, nil
}
