package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Relay passes requests for certificates on to the authority on a Unix socket,
// each with the token, which says whose host this is: an enclave has no way of
// its own to an authority, and nothing secret when it starts ([Enrol]).
//
// Whoever has the token can have such certificates without an enclave. So they
// say on which instance something runs and never what runs there; attestation
// does. Relay returns when ctx ends, with the answers under way.
func Relay(ctx context.Context, listener net.Listener, authority, token string) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var answers sync.WaitGroup
	defer answers.Wait()
	slots := make(chan struct{}, 4)
	for {
		conn, err := listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("identity relay: %w", err)
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			_ = conn.Close()
			return nil
		}
		answers.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
				return
			}
			_ = json.NewEncoder(conn).Encode(relayed(ctx, conn, authority, token)) // the asker has gone
		})
	}
}

func relayed(ctx context.Context, r io.Reader, authority, token string) Response {
	var req Request
	if err := json.NewDecoder(io.LimitReader(r, MaxMessageBytes)).Decode(&req); err != nil {
		return Response{Error: "the request is not JSON of the expected form"}
	}
	resp, err := exchange(ctx, dialUnix(authority), Request{Token: token, CSR: req.CSR})
	if err != nil {
		return Response{Error: "the instance's parent has no answer from the certificate authority"}
	}
	return resp
}
