// Package nsm is a client of a Nitro Security Module: the device that measures
// an enclave and signs attestation documents for it.
//
//	module, err := nsm.Dial("unix:/run/mrgc/nsm.sock")
//	document, err := module.Attest(ctx, nsm.Request{UserData: claimsHash})
//
// Requests and responses are encoded as the real module's, which is reached
// through /dev/nsm by one ioctl (aws-nitro-enclaves-nsm-api, src/api/mod.rs).
// Over a stream, each message follows its length (see [WriteFrame]).
//
// The package is part of the measured enclave. It asks for documents and can
// neither make, sign nor verify one: signing happens in the module, and
// verifying is for the other side (internal/attest). It logs nothing.
package nsm

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"
)

// Timeout bounds one request, unless its context ends sooner. A real module
// answers in milliseconds.
const Timeout = 5 * time.Second

// Request is what the enclave wants to have in its document. Every field may be
// empty.
type Request struct {
	UserData  []byte // at most [MaxUserData] bytes
	Nonce     []byte // at most [MaxNonce] bytes
	PublicKey []byte // at most [MaxPublicKey] bytes, DER by convention
}

// Module makes attestation documents for the process that asks.
//
// Attest returns a COSE_Sign1 message that holds the request's fields. It
// returns an [ErrorCode] when the module refuses, and ctx's error when that
// ends first. It keeps nothing of the request, may be called concurrently, and
// each call is independent: after a failed one the next may succeed.
type Module interface {
	Attest(ctx context.Context, req Request) (document []byte, err error)
}

// Dial returns the module at an address:
//
//	device:/dev/nsm  the enclave's own
//	unix:PATH        the software module for development
//
// Nothing is connected before the first Attest, so the module may start later,
// and may restart.
func Dial(address string) (Module, error) {
	if path, ok := strings.CutPrefix(address, "device:"); ok && path != "" {
		return openDevice(path)
	}
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok || path == "" {
		return nil, fmt.Errorf("nsm address %q: want unix:PATH or device:/dev/nsm", address)
	}
	return unixModule{path: path}, nil
}

// unixModule makes one connection for each request: the module at the other end
// measures the process that connects.
type unixModule struct{ path string }

func (m unixModule) Attest(ctx context.Context, req Request) ([]byte, error) {
	document, err := m.attest(ctx, req)
	if err != nil {
		return nil, fmt.Errorf("nsm %s: %w", m.path, err)
	}
	return document, nil
}

func (m unixModule) attest(ctx context.Context, req Request) (document []byte, err error) {
	message, err := EncodeRequest(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", m.path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// A context that ends interrupts what blocks on the connection; its own
	// error says more than the broken connection's.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = ctx.Err()
		}
	}()
	if err := WriteFrame(conn, message); err != nil {
		return nil, err
	}
	answer, err := ReadFrame(conn, MaxResponse)
	if err != nil {
		return nil, err
	}
	return DecodeResponse(answer)
}
