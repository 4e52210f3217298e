package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// turn is what came from the server: a message, or the end.
type turn struct {
	message proto.Message
	err     error
}

// talk leads a conversation over a stream, move by move.
func (w *world) talk(s step) ([]string, error) {
	method, err := methodOf(s.Call)
	if err != nil {
		return nil, err
	}
	connection, err := w.connection(s.As)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	stream, err := connection.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, fullName(method))
	if err != nil {
		return nil, err
	}
	turns := listen(stream, method.Output())
	var problems []string
	for i, move := range s.Talk {
		found, err := w.move(move, stream, turns, method.Input())
		for _, problem := range found {
			problems = append(problems, fmt.Sprintf("move %d: %s", i+1, problem))
		}
		if err != nil {
			return problems, fmt.Errorf("move %d: %w", i+1, err)
		}
	}
	return problems, nil
}

func listen(stream grpc.ClientStream, descriptor protoreflect.MessageDescriptor) <-chan turn {
	turns := make(chan turn, 64)
	go func() {
		defer close(turns)
		for {
			message, err := newMessage(descriptor)
			if err == nil {
				err = stream.RecvMsg(message)
			}
			turns <- turn{message, err}
			if err != nil {
				return
			}
		}
	}()
	return turns
}

func (w *world) move(m move, stream grpc.ClientStream, turns <-chan turn, input protoreflect.MessageDescriptor) ([]string, error) {
	switch {
	case m.Send != nil:
		message, err := w.request(input, m.Send)
		if err != nil {
			return nil, err
		}
		if err := stream.SendMsg(message); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return nil, nil
	case m.Close:
		return nil, stream.CloseSend()
	case m.Quiet > 0:
		select {
		case got := <-turns:
			return []string{fmt.Sprintf("want silence, got %v %v", got.message, got.err)}, nil
		case <-time.After(time.Duration(m.Quiet) * time.Millisecond):
			return nil, nil
		}
	}
	got, open := <-turns
	if !open {
		return []string{"the stream has ended already"}, nil
	}
	if m.End != "" {
		return ended(m, got), nil
	}
	if got.err != nil {
		return nil, fmt.Errorf("want a message, got the end: %w", got.err)
	}
	return w.compare(m.Get, m.Has, got.message)
}

func ended(m move, got turn) []string {
	if got.err == nil {
		return []string{fmt.Sprintf("want the end, got %v", got.message)}
	}
	if errors.Is(got.err, io.EOF) {
		got.err = nil
	}
	code := m.End
	if code == "OK" {
		code = ""
	}
	return judge(step{Code: code, Reason: m.Reason}, got.err)
}
