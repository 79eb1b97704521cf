package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// A certificate authority on a Unix socket answers one JSON [Request] per
// connection with one JSON [Response]; both sides then close.
type (
	// Request asks for a certificate for the key that signed the CSR.
	Request struct {
		Token string `json:"token"` // says which identity the asker may have
		CSR   []byte `json:"csr"`   // PKCS #10 in DER; its names are ignored
	}
	// Response carries the certificate, or why there is none.
	Response struct {
		Chain [][]byte `json:"chain,omitempty"` // DER, leaf first
		Roots []byte   `json:"roots,omitempty"` // PEM
		Error string   `json:"error,omitempty"`
	}
)

// MaxMessageBytes bounds a [Request] and a [Response].
const MaxMessageBytes = 64 << 10

const requestTimeout = 10 * time.Second

// request has a key certified by the authority on a Unix socket, which is
// trusted to name the roots, too.
func request(ctx context.Context, path, token string) (*Source, error) {
	resp, cert, err := certify(ctx, dialUnix(path), token)
	if err != nil {
		return nil, fmt.Errorf("identity: %s: %w", path, err)
	}
	return newSource(cert, resp.Roots)
}

func dialUnix(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", path)
	}
}

// certify makes a key and has it certified.
func certify(ctx context.Context, dial func(context.Context) (net.Conn, error), token string) (Response, *tls.Certificate, error) {
	fail := func(what string, err error) (Response, *tls.Certificate, error) {
		return Response{}, nil, fmt.Errorf("%s: %w", what, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail("make a key", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fail("make a certificate request", err)
	}
	resp, err := exchange(ctx, dial, Request{Token: token, CSR: csr})
	if err != nil {
		return fail("ask for a certificate", err)
	}
	if resp.Error != "" {
		return fail("refused", errors.New(resp.Error))
	}
	if len(resp.Chain) == 0 {
		return Response{}, nil, errors.New("no certificate was sent")
	}
	leaf, err := x509.ParseCertificate(resp.Chain[0])
	if err != nil {
		return fail("certificate", err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return Response{}, nil, errors.New("the certificate is for another key")
	}
	return resp, &tls.Certificate{Certificate: resp.Chain, PrivateKey: key, Leaf: leaf}, nil
}

func exchange(ctx context.Context, dial func(context.Context) (net.Conn, error), req Request) (resp Response, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	conn, err := dial(ctx)
	if err != nil {
		return Response{}, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return Response{}, err
	}
	if err := json.NewEncoder(conn).Encode(req); err != nil {
		return Response{}, err
	}
	err = json.NewDecoder(io.LimitReader(conn, MaxMessageBytes)).Decode(&resp)
	return resp, err
}
