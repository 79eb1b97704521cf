// Package devca is the development certificate authority of `mrgc up`. It
// stands in for the SPIRE server or private CA that a deployment has.
//
// It lives as long as the process that made it: its key is never written
// anywhere, and a new start has a new root. Parts of the cluster get their
// certificates through [Authority.Serve] with a token that was granted one
// identity; Envoy, which reads files, through [Authority.WriteFiles].
package devca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/mrgc/mrgc/internal/identity"
)

// Lifetime is how long the root and what it signs are valid: longer than
// anyone leaves a development cluster running.
const Lifetime = 90 * 24 * time.Hour

// Authority signs certificates.
type Authority struct {
	root *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	grants map[string]identity.ID // guarded by mu: token → identity
}

// New makes an authority whose root is valid from now on.
func New(now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("development CA: %w", err)
	}
	template, err := template(now)
	if err != nil {
		return nil, err
	}
	template.Subject = pkix.Name{CommonName: "MRGC DEVELOPMENT CA"}
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("development CA: sign the root: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("development CA: %w", err)
	}
	return &Authority{root: root, key: key, grants: map[string]identity.ID{}}, nil
}

func template(now time.Time) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("development CA: draw a serial number: %w", err)
	}
	return &x509.Certificate{
		SerialNumber: serial,
		NotBefore:    now.Add(-time.Minute),
		NotAfter:     now.Add(Lifetime),
	}, nil
}

// RootPEM is the root certificate.
func (a *Authority) RootPEM() []byte { return pemOf("CERTIFICATE", a.root.Raw) }

func pemOf(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Grant lets whoever presents the returned token have certificates for id.
func (a *Authority) Grant(id identity.ID) (token string, err error) {
	if err := id.Validate(); err != nil {
		return "", err
	}
	token = rand.Text()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grants[token] = id
	return token, nil
}

func (a *Authority) granted(token string) (found identity.ID, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for known, id := range a.grants {
		if subtle.ConstantTimeCompare([]byte(known), []byte(token)) == 1 {
			found, ok = id, true
		}
	}
	return found, ok
}

// sign certifies a key for the names that a template carries.
func (a *Authority) sign(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	der, err := x509.CreateCertificate(rand.Reader, template, a.root, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("development CA: sign: %w", err)
	}
	return der, nil
}

// issue certifies a key for an identity.
func (a *Authority) issue(id identity.ID, public crypto.PublicKey, now time.Time) ([]byte, error) {
	t, err := template(now)
	if err != nil {
		return nil, err
	}
	t.URIs = append(t.URIs, id.URL())
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.sign(t, public)
}

// ServerCertificate makes a key and a certificate for host names and loopback
// addresses, in PEM: what the tenants' listener shows.
func (a *Authority) ServerCertificate(now time.Time, hosts ...string) (certPEM, keyPEM []byte, err error) {
	t, err := template(now)
	if err != nil {
		return nil, nil, err
	}
	t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else {
			t.DNSNames = append(t.DNSNames, host)
		}
	}
	return a.withNewKey(func(public crypto.PublicKey) ([]byte, error) { return a.sign(t, public) })
}

func (a *Authority) withNewKey(certify func(crypto.PublicKey) ([]byte, error)) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("development CA: make a key: %w", err)
	}
	der, err := certify(key.Public())
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("development CA: %w", err)
	}
	return pemOf("CERTIFICATE", der), pemOf("PRIVATE KEY", pkcs8), nil
}

// WriteFiles makes a key and a certificate for id and writes the files of
// [identity.Open]'s dir: form, readable by their owner alone.
func (a *Authority) WriteFiles(dir string, id identity.ID, now time.Time) error {
	if err := id.Validate(); err != nil {
		return err
	}
	certPEM, keyPEM, err := a.withNewKey(func(public crypto.PublicKey) ([]byte, error) { return a.issue(id, public, now) })
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("development CA: %w", err)
	}
	for name, content := range map[string][]byte{
		identity.CertificateFile: certPEM,
		identity.KeyFile:         keyPEM,
		identity.RootsFile:       a.RootPEM(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return fmt.Errorf("development CA: %w", err)
		}
	}
	return nil
}

// Serve answers requests for certificates until ctx ends; then it closes the
// listener and waits for the answers under way.
func (a *Authority) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var answers sync.WaitGroup
	defer answers.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("development CA: %w", err)
		}
		answers.Go(func() {
			defer conn.Close()
			if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return
			}
			_ = json.NewEncoder(conn).Encode(a.answer(conn)) // the asker has gone
		})
	}
}

func (a *Authority) answer(r io.Reader) identity.Response {
	var req identity.Request
	if err := json.NewDecoder(io.LimitReader(r, identity.MaxMessageBytes)).Decode(&req); err != nil {
		return identity.Response{Error: "the request is not JSON of the expected form"}
	}
	id, ok := a.granted(req.Token)
	if !ok {
		return identity.Response{Error: "the token is not one that this cluster granted"}
	}
	csr, err := x509.ParseCertificateRequest(req.CSR)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return identity.Response{Error: errors.Join(errors.New("bad certificate request"), err).Error()}
	}
	der, err := a.issue(id, csr.PublicKey, time.Now())
	if err != nil {
		return identity.Response{Error: err.Error()}
	}
	return identity.Response{Chain: [][]byte{der}, Roots: a.RootPEM()}
}
