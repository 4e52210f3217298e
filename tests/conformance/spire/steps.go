package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// step is one call and what must come back, or (with Do) something that has to be there for later ones.
type step struct {
	Name   string         `json:"name"`
	As     string         `json:"as"`
	Call   string         `json:"call"`
	Send   any            `json:"send"`
	Raw    *string        `json:"raw"`
	Get    any            `json:"get"`
	Has    any            `json:"has"`
	Code   string         `json:"code"`
	Reason string         `json:"reason"`
	Past   []string       `json:"past"`
	Talk   []move         `json:"talk"`
	Do     string         `json:"do"`
	With   map[string]any `json:"with"`
}

// move is one turn of a stream's conversation.
type move struct {
	Send   any    `json:"send"`
	Get    any    `json:"get"`
	Has    any    `json:"has"`
	End    string `json:"end"`
	Reason string `json:"reason"`
	Close  bool   `json:"close"`
	Quiet  int    `json:"quiet"`
}

func (w *world) play(s step) []string {
	var problems []string
	var err error
	switch {
	case s.Do != "":
		err = w.do(s)
	case s.Talk != nil:
		problems, err = w.talk(s)
	default:
		problems, err = w.call(s)
	}
	if err != nil {
		problems = append(problems, err.Error())
	}
	return problems
}

// request makes the message that a case writes down.
func (w *world) request(descriptor protoreflect.MessageDescriptor, send any) (proto.Message, error) {
	message, err := newMessage(descriptor)
	if err != nil || send == nil {
		return message, err
	}
	expanded, err := w.expand(send)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(expanded)
	if err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(raw, message); err != nil {
		return nil, fmt.Errorf("the request: %w", err)
	}
	return message, nil
}

func (w *world) call(s step) ([]string, error) {
	connection, err := w.connection(s.As)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if isMethodPath(s.Call) {
		var answer []byte
		err := connection.Invoke(ctx, s.Call, []byte{}, &answer, grpc.ForceCodec(rawCodec{}))
		return judge(s, err), nil
	}
	method, err := methodOf(s.Call)
	if err != nil {
		return nil, err
	}
	if method.IsStreamingClient() || method.IsStreamingServer() {
		return w.once(ctx, s, connection, method)
	}
	if s.Raw != nil {
		request, err := hex.DecodeString(*s.Raw)
		if err != nil {
			return nil, err
		}
		var answer []byte
		err = connection.Invoke(ctx, fullName(method), request, &answer, grpc.ForceCodec(rawCodec{}))
		return judge(s, err), nil
	}
	request, err := w.request(method.Input(), s.Send)
	if err != nil {
		return nil, err
	}
	answer, err := newMessage(method.Output())
	if err != nil {
		return nil, err
	}
	if err := connection.Invoke(ctx, fullName(method), request, answer); err != nil || s.Code != "" || s.Past != nil {
		return judge(s, err), nil
	}
	return w.compare(s.Get, s.Has, answer)
}

// once opens a stream for a step that only asks whether the caller is let in.
func (w *world) once(ctx context.Context, s step, connection *grpc.ClientConn, method protoreflect.MethodDescriptor) ([]string, error) {
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, fullName(method))
	if err != nil {
		return judge(s, err), nil
	}
	request, err := w.request(method.Input(), s.Send)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return judge(s, err), nil
	}
	answer, err := newMessage(method.Output())
	if err != nil {
		return nil, err
	}
	if err = stream.RecvMsg(answer); errors.Is(err, io.EOF) {
		err = nil
	}
	return judge(s, err), nil
}

func (w *world) compare(get, has any, answer proto.Message) ([]string, error) {
	raw, err := protojson.Marshal(answer)
	if err != nil {
		return nil, err
	}
	var got any
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	if err := decoder.Decode(&got); err != nil {
		return nil, err
	}
	m := &matcher{world: w}
	for want, partial := range map[*any]bool{&get: false, &has: true} {
		if *want == nil {
			continue
		}
		expanded, err := w.expand(*want)
		if err != nil {
			return nil, err
		}
		m.partial = partial
		m.match("", expanded, got)
	}
	return m.problems, nil
}

// judge compares the outcome of a call with the code and the details that a step expects.
func judge(s step, err error) (problems []string) {
	got := status.Convert(err)
	if s.Past != nil {
		return past(s.Past, got)
	}
	want := s.Code
	if want == "" {
		want = "OK"
	}
	if got.Code().String() != want {
		return []string{fmt.Sprintf("want %s, got %s %q", want, got.Code(), got.Message())}
	}
	if got.Code() == codes.OK {
		return nil
	}
	for _, leak := range []string{"Traceback", "Exception", "Error(", "<class", "object at 0x"} {
		if strings.Contains(got.Message(), leak) {
			problems = append(problems, fmt.Sprintf("the message tells of our insides: %q", got.Message()))
		}
	}
	if reason := reasonOf(got); reason != s.Reason {
		problems = append(problems, fmt.Sprintf("want the reason %q in the details, got %q", s.Reason, reason))
	}
	return problems
}

// past says whether authorization let the caller through; the codes named are those of the method's own, later refusal.
func past(own []string, got *status.Status) []string {
	if got.Code() != codes.PermissionDenied && got.Code() != codes.Unimplemented {
		return nil
	}
	for _, code := range own {
		if got.Code().String() == code {
			return nil
		}
	}
	return []string{fmt.Sprintf("must be let in, got %s %q", got.Code(), got.Message())}
}

func reasonOf(got *status.Status) string {
	for _, detail := range got.Details() {
		if denied, ok := detail.(*types.PermissionDeniedDetails); ok {
			return denied.Reason.String()
		}
	}
	return ""
}

func (w *world) keep(name, key string, ders [][]byte) error {
	signer, err := w.key(key)
	if err != nil {
		return err
	}
	leaf, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return err
	}
	if known := w.connections[name]; known != nil {
		known.Close()
		delete(w.connections, name)
	}
	w.identities[name] = &tls.Certificate{Certificate: ders, PrivateKey: signer, Leaf: leaf}
	w.vars[name] = leaf.URIs[0].Path
	return nil
}

// rawCodec passes bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) {
	data, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T is no bytes", v)
	}
	return data, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

func (rawCodec) Name() string { return "proto" }

// check gives the methods and request fields of all steps, without a server.
func (w *world) check(steps []step) (usage, error) {
	w.dry = true
	methods, fields := map[string]bool{}, map[string]bool{}
	note := func(s step, send any) error {
		if isMethodPath(s.Call) {
			return nil
		}
		method, err := methodOf(s.Call)
		if err != nil {
			return err
		}
		methods[s.Call] = true
		message, err := w.request(method.Input(), send)
		if err == nil {
			usedFields(message.ProtoReflect(), fields)
		}
		return err
	}
	for _, s := range steps {
		if s.Do != "" {
			continue
		}
		sent := []any{s.Send}
		for _, move := range s.Talk {
			sent = append(sent, move.Send)
		}
		for _, send := range sent {
			if err := note(s, send); err != nil {
				return usage{}, fmt.Errorf("%s: %w", s.Name, err)
			}
		}
	}
	return usage{sorted(methods), sorted(fields)}, nil
}
