package local

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"time"
)

// Ports are drawn below the range that kernels use for outgoing connections
// (32768 and up on Linux), so that none is taken between being drawn and being
// listened on, except by another program that was told to.
const (
	firstPort = 20000
	lastPort  = 32000

	listenTimeout = 5 * time.Second
	listenPoll    = 10 * time.Millisecond
)

// ports draws loopback ports that nobody listens on.
type ports struct{ next int }

// newPorts begins anywhere, so that clusters that start together rarely meet.
func newPorts() *ports {
	return &ports{next: firstPort + rand.IntN(lastPort-firstPort)} //nolint:gosec // no secret
}

// draw gives an address "127.0.0.1:port".
func (p *ports) draw() (string, error) {
	for range lastPort - firstPort {
		port := p.next
		if p.next++; p.next > lastPort {
			p.next = firstPort
		}
		address := loopback(port)
		if free(address) == nil {
			return address, nil
		}
	}
	return "", errors.New("no free port on loopback")
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// awaitListener waits until someone listens on an address, for as long as that
// may take a healthy program.
func awaitListener(ctx context.Context, address string) {
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	for address != "" && ctx.Err() == nil {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", address); err == nil {
			_ = conn.Close()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(listenPoll):
		}
	}
}

// free says why an address cannot be listened on.
func free(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}

// tenantPort gives the address of the tenant's endpoint: the one asked for, or
// a drawn one for 0.
func (p *ports) tenantPort(port int) (string, error) {
	if port == 0 {
		return p.draw()
	}
	address := loopback(port)
	if err := free(address); err != nil {
		return "", fmt.Errorf("port %d is taken: stop what listens there, or choose another with --port: %w", port, err)
	}
	return address, nil
}
