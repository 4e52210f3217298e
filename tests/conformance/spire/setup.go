package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	agentdebugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// do prepares what later steps need: {"do": "agent"|"svid"|"stranger"|"expire"|"wait"|"holds", "with": {...}}.
func (w *world) do(s step) error {
	with := func(key string) string {
		text, _ := s.With[key].(string)
		value, _ := w.substitute(text)
		return value
	}
	name := with("name")
	ctx, cancel := context.WithTimeout(context.Background(), 2*callTime)
	defer cancel()
	switch s.Do {
	case "agent":
		return w.attest(ctx, name, with("token"))
	case "svid":
		return w.issue(ctx, name, s.As, with("entry"))
	case "stranger":
		identity, err := w.stranger(with("path"))
		w.identities[name] = identity
		return err
	case "expire":
		return w.expire(name)
	case "wait":
		return waitUntil(with("until"))
	case "holds":
		return w.holds(ctx, with("svids"))
	}
	return fmt.Errorf("nothing is done by %q", s.Do)
}

// attest makes an agent by join token; ${NAME} is its path and ${NAME_token} its token afterwards.
func (w *world) attest(ctx context.Context, name, token string) error {
	admin, err := w.connection(adminUDS)
	if err != nil {
		return err
	}
	if token == "" {
		made, err := agentv1.NewAgentClient(admin).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{Ttl: 600})
		if err != nil {
			return err
		}
		token = made.Value
	}
	w.vars[name+"_token"] = token
	connection, err := w.connection(anonymous)
	if err != nil {
		return err
	}
	key := "p256." + name
	csr, err := w.csr([]string{"key=" + key})
	if err != nil {
		return err
	}
	stream, err := agentv1.NewAgentClient(connection).AttestAgent(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{
		Params: &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: "join_token", Payload: []byte(token)},
			Params: &agentv1.AgentX509SVIDParams{Csr: csr},
		}}}); err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	return w.keep(name, key, answer.GetResult().GetSvid().GetCertChain())
}

// issue has an agent ask for the X.509-SVID of an entry and keeps it as an identity.
func (w *world) issue(ctx context.Context, name, agent, entry string) error {
	connection, err := w.connection(agent)
	if err != nil {
		return err
	}
	key := "p256." + name
	csr, err := w.csr([]string{"key=" + key})
	if err != nil {
		return err
	}
	answer, err := svidv1.NewSVIDClient(connection).BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{
		Params: []*svidv1.NewX509SVIDParams{{EntryId: entry, Csr: csr}},
	})
	if err != nil {
		return err
	}
	if result := answer.Results[0]; result.Status.Code != 0 {
		return errors.New(result.Status.Message)
	}
	return w.keep(name, key, answer.Results[0].Svid.CertChain)
}

// expire waits until an identity's certificate has expired, a second ago.
func (w *world) expire(name string) error {
	identity := w.identities[name]
	if identity == nil {
		return fmt.Errorf("nobody is called %q yet", name)
	}
	wait := time.Until(identity.Leaf.NotAfter.Add(time.Second))
	if wait > time.Minute {
		return fmt.Errorf("%s does not expire for %s", name, wait)
	}
	time.Sleep(wait)
	return nil
}

// waitUntil sleeps until a second after a time in Unix seconds.
func waitUntil(text string) error {
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return err
	}
	wait := time.Until(time.Unix(seconds+1, 0))
	if wait > time.Minute {
		return fmt.Errorf("that is in %s", wait)
	}
	time.Sleep(wait)
	return nil
}

// holds waits until the agent holds so many X.509-SVIDs.
func (w *world) holds(ctx context.Context, svids string) error {
	connection, err := w.connection(agentAdmin)
	if err != nil {
		return err
	}
	for {
		info, err := agentdebugv1.NewDebugClient(connection).GetInfo(ctx, &agentdebugv1.GetInfoRequest{})
		if err != nil {
			return err
		}
		if strconv.Itoa(int(info.CachedX509SvidsCount)) == svids {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}
