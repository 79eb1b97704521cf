package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Enrol makes a key and has it certified by the authority that dial reaches. It
// trusts roots, in PEM, and what the authority or whoever is between says of
// roots not at all: the certificate must verify by them and be for role. It is to be
// renewed ([Source.Renew]).
func Enrol(ctx context.Context, dial func(context.Context) (net.Conn, error), role Role, roots []byte) (*Source, error) {
	_, cert, err := certify(ctx, dial, "")
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	s, err := newSource(cert, roots)
	if err != nil {
		return nil, err
	}
	if s.id.Role != role {
		return nil, fmt.Errorf("identity: certificate is for %s, not for the role of %s", s.id, role)
	}
	if err := s.verify(cert); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	s.dial = dial
	return s, nil
}

// verify checks that a certificate which was sent is by the roots.
func (s *Source) verify(cert *tls.Certificate) error {
	intermediates := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		intermediate, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("certificate of an authority: %w", err)
		}
		intermediates.AddCert(intermediate)
	}
	if _, err := cert.Leaf.Verify(x509.VerifyOptions{
		Roots: s.roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return fmt.Errorf("certificate of another authority: %w", err)
	}
	return nil
}

// renewAgain is how long after a renewal that failed the next one is tried.
const renewAgain = time.Minute

// Renew has an enrolled identity's certificate renewed, for another key, whenever two
// thirds of its life are over, until ctx ends; connections that stand go on. While that
// fails, the one at hand goes on, too. Of a source that was not enrolled nothing is
// renewed here: files are followed, and an authority that is trusted is asked once.
func (s *Source) Renew(ctx context.Context, log *slog.Logger) {
	if s.dial == nil {
		return
	}
	timer := time.NewTimer(time.Until(renewAt(s.certificate().Leaf)))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := s.renew(ctx)
		if ctx.Err() != nil {
			return
		}
		leaf := s.certificate().Leaf
		if err != nil {
			log.Error("certificate is not renewed, trying again", "identity", s.id, "expires", leaf.NotAfter, "error", err)
			timer.Reset(renewAgain)
			continue
		}
		log.Info("certificate is renewed", "identity", s.id, "expires", leaf.NotAfter)
		timer.Reset(max(time.Until(renewAt(leaf)), renewAgain)) // of one that is short-lived, or by another clock
	}
}

func renewAt(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) * 2 / 3)
}

// renew has another key certified for the same identity.
func (s *Source) renew(ctx context.Context) error {
	_, cert, err := certify(ctx, s.dial, "")
	if err != nil {
		return err
	}
	id, err := Of(cert.Leaf)
	if err != nil {
		return err
	}
	if id != s.id {
		return fmt.Errorf("certificate is for %s, not for %s", id, s.id)
	}
	if err := s.verify(cert); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cert = cert
	return nil
}
