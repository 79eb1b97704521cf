package identity_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/standin/devca"
)

// authority is one that is reached within the process, so that time can be the test's.
// It is its own listener.
type authority struct {
	*devca.Authority
	calls chan net.Conn
	done  chan struct{}
}

func (a *authority) Accept() (net.Conn, error) {
	select {
	case conn := <-a.calls:
		return conn, nil
	case <-a.done:
		return nil, net.ErrClosed
	}
}

func (a *authority) Close() error   { close(a.done); return nil }
func (a *authority) Addr() net.Addr { return &net.UnixAddr{} }

// startAuthority runs one until ctx ends.
func startAuthority(ctx context.Context, g *WithT) *authority {
	ca, err := devca.New(time.Now())
	g.Expect(err).NotTo(HaveOccurred())
	a := &authority{ca, make(chan net.Conn), make(chan struct{})}
	go func() { _ = ca.Serve(ctx, a) }()
	return a
}

// relay is an enclave's host's, to what it holds; nil: to nobody.
type relay struct{ atomic.Pointer[grant] }

type grant struct {
	by    *authority
	token string
}

// to has the relay ask an authority for certificates of an identity from now on.
func (r *relay) to(g *WithT, a *authority, id identity.ID) {
	token, err := a.Grant(id)
	g.Expect(err).NotTo(HaveOccurred())
	r.Store(&grant{a, token})
}

func (r *relay) dial(context.Context) (net.Conn, error) {
	to := r.Load()
	if to == nil {
		return nil, errors.New("nobody is there")
	}
	enclave, here := net.Pipe()
	go func() {
		defer here.Close()
		var req identity.Request
		if json.NewDecoder(here).Decode(&req) != nil {
			return
		}
		req.Token = to.token
		asking, asked := net.Pipe()
		defer asking.Close()
		to.by.calls <- asked
		_ = json.NewEncoder(asking).Encode(req)
		_, _ = io.Copy(here, asking)
	}()
	return enclave, nil
}

// Plain tests, and not Ginkgo's: they have a time of their own, in which a
// certificate's life of 90 days passes at once.
func TestRenew(t *testing.T) {
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		change  func(ctx context.Context, g *WithT, r *relay, ca *authority) // on the second day
		renewed bool                                                         // on the 61st
	}{
		"when two thirds of its life are over, for another key": {nil, true},
		"not while there is no authority":                       {func(_ context.Context, _ *WithT, r *relay, _ *authority) { r.Store(nil) }, false},
		"for nobody else": {func(_ context.Context, g *WithT, r *relay, ca *authority) {
			r.to(g, ca, identity.ID{Region: "use1", Instance: "use1-1", Role: identity.RoleEnclave})
		}, false},
		"by no other authority": {func(ctx context.Context, g *WithT, r *relay, _ *authority) {
			r.to(g, startAuthority(ctx, g), enclave)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := NewWithT(t)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				ca, r := startAuthority(ctx, g), &relay{}
				r.to(g, ca, enclave)
				source, err := identity.Enrol(ctx, r.dial, identity.RoleEnclave, ca.RootPEM())
				g.Expect(err).NotTo(HaveOccurred())
				go source.Renew(ctx, slog.New(slog.DiscardHandler))
				first := source.PublicKey()
				isRenewed := func(after time.Duration) bool {
					time.Sleep(after)
					synctest.Wait()
					g.Expect(source.ID()).To(Equal(enclave))
					return !bytes.Equal(source.PublicKey(), first)
				}
				time.Sleep(day)
				if test.change != nil {
					test.change(ctx, g, r, ca)
				}
				g.Expect(isRenewed(58*day)).To(BeFalse(), "it is not time yet")
				g.Expect(isRenewed(2 * day)).To(Equal(test.renewed))
				if !test.renewed {
					r.to(g, ca, enclave)
					g.Expect(isRenewed(2*time.Minute)).To(BeTrue(), "all is as before, and it is tried again")
				}
			})
		})
	}
}
