package softaccelerator

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run checks endpoints and forwards connections until ctx ends; then it closes all of
// them.
func (s *Service) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for number := range s.config.Groups {
		group.Go(func() error { s.check(ctx, number); return nil })
	}
	for number, client := range s.config.Clients {
		group.Go(func() error { return s.accept(ctx, number, client.Listener) })
	}
	return group.Wait()
}

// check checks a group's endpoints, all at once, time and again.
func (s *Service) check(ctx context.Context, number int) {
	client := &http.Client{
		Timeout: s.config.Timeout,
		Transport: &http.Transport{
			DisableKeepAlives: true, // a check closes its connection
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	for {
		by := s.effective(number)
		var checking sync.WaitGroup
		for _, e := range by.endpoints {
			checking.Go(func() {
				passed := s.passes(ctx, client, by.check, s.address[e.id])
				if ctx.Err() == nil {
					s.note(number, e.id, passed)
				}
			})
		}
		checking.Wait()
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(by.check.IntervalSeconds) * s.config.Second):
		}
	}
}

// passes says whether an endpoint passes a check: by TCP, that it can be connected to;
// by HTTP, that it answers with a status of success or redirection, as Route 53's
// checkers want, which Global Accelerator uses.
func (s *Service) passes(ctx context.Context, client *http.Client, by Check, address string) bool {
	if by.Port != 0 {
		host, _, _ := net.SplitHostPort(address) // checked by New
		address = net.JoinHostPort(host, strconv.Itoa(by.Port))
	}
	if by.Protocol == "TCP" {
		conn, err := (&net.Dialer{Timeout: s.config.Timeout}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.ToLower(by.Protocol)+"://"+address+by.Path, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode >= 200 && resp.StatusCode < 400
}

// accept forwards a client's connections.
func (s *Service) accept(ctx context.Context, client int, listener net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var forwarding sync.WaitGroup
	defer forwarding.Wait()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil { // of a connection, or too many of them
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
			continue
		}
		forwarding.Go(func() { s.forward(ctx, conn, s.choose(client)) })
	}
}

// forward connects a client to an endpoint, or resets its connection.
func (s *Service) forward(ctx context.Context, client net.Conn, address string) {
	defer client.Close()
	endpoint, err := (&net.Dialer{Timeout: s.config.Timeout}).DialContext(ctx, "tcp", address)
	if err != nil {
		reset(client)
		return
	}
	defer endpoint.Close()
	stop := context.AfterFunc(ctx, func() { _ = client.Close(); _ = endpoint.Close() })
	defer stop()
	var copying sync.WaitGroup
	copying.Go(func() { pipe(endpoint, client) })
	pipe(client, endpoint)
	copying.Wait()
}

// pipe copies until the source ends, and hands on how it has: orderly, or by a reset.
func pipe(to, from net.Conn) {
	if _, err := io.Copy(to, from); err != nil {
		reset(to)
		reset(from)
		return
	}
	if half, ok := to.(*net.TCPConn); ok {
		_ = half.CloseWrite() // it may be gone
	}
}

// reset ends a connection with RST.
func reset(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // it may be gone
	}
	_ = conn.Close()
}
