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

// request makes a key and has it certified.
func request(ctx context.Context, path, token string) (*Source, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("identity: make a key: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("identity: make a certificate request: %w", err)
	}
	resp, err := exchange(ctx, path, Request{Token: token, CSR: csr})
	if err != nil {
		return nil, fmt.Errorf("identity: ask %s for a certificate: %w", path, err)
	}
	if resp.Error != "" {
		return nil, fmt.Errorf("identity: refused by %s: %s", path, resp.Error)
	}
	if len(resp.Chain) == 0 {
		return nil, fmt.Errorf("identity: %s sent no certificate", path)
	}
	leaf, err := x509.ParseCertificate(resp.Chain[0])
	if err != nil {
		return nil, fmt.Errorf("identity: certificate from %s: %w", path, err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("identity: certificate from %s is for another key", path)
	}
	return newSource(&tls.Certificate{Certificate: resp.Chain, PrivateKey: key, Leaf: leaf}, resp.Roots)
}

func exchange(ctx context.Context, path string, req Request) (resp Response, err error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
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
