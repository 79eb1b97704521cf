package parent_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/tenant"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/parent"
)

const (
	elsewhere = "00000000000000aa" // key ids that other instances hold
	further   = "00000000000000bb"
	nowhere   = "00000000000000cc"
)

// peer is another instance's parent, with an enclave that says its name.
type peer struct {
	id      string
	asked   atomic.Int64
	from    atomic.Value // role of who asked last
	regions atomic.Value // what was said of them last
	fails   atomic.Bool  // breaks connections off
	holds   atomic.Bool  // answers when the test is over
}

// peer starts one and registers it.
func (in *instance) peer(ctx context.Context, id string, load fleet.Load, healthy bool, keyIDs ...string) *peer {
	GinkgoHelper()
	return in.peerIn(ctx, region, id, load, healthy, keyIDs...)
}

// peerIn does it in a region of its own.
func (in *instance) peerIn(ctx context.Context, region fleet.Region, id string, load fleet.Load, healthy bool, keyIDs ...string) *peer {
	GinkgoHelper()
	p := &peer{id: id}
	source := in.source(identity.ID{Region: string(region), Instance: id, Role: identity.RoleParent})
	server := &http.Server{
		TLSConfig: source.ServerTLS(func(identity.ID) bool { return true }),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			who, _ := identity.Peer(r.TLS)
			p.from.Store(who.Role)
			p.asked.Add(1)
			p.regions.Store(r.Header.Get(api.HeaderAllowedRegions))
			if p.fails.Load() {
				panic(http.ErrAbortHandler)
			}
			if p.holds.Load() {
				<-r.Context().Done()
				return
			}
			body, _ := io.ReadAll(r.Body)
			w.Header().Set(api.HeaderKeyStatus, "passes")
			_, _ = io.WriteString(w, id+" got "+string(body)+r.Header.Get("Authorization"))
			w.Header().Set(http.TrailerPrefix+api.HeaderUsage, "128/128")
		}),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	go func() { _ = server.ServeTLS(listener, "", "") }()
	DeferCleanup(server.Close)
	Expect(in.store.Store.Register(ctx, fleet.Instance{
		ID: id, Region: region, Address: listener.Addr().String(), Models: []string{"m"}, KeyIDs: keyIDs, Load: load,
		Health: fleet.Health{Enclave: healthy, Engine: healthy},
	})).To(Succeed())
	return p
}

// sealedTo is a request for recipients that may be elsewhere.
func (in *instance) sealedTo(ctx context.Context, keyIDs ...string) *http.Request {
	GinkgoHelper()
	req := in.sealed(ctx, "sealed")
	req.Header.Set(api.HeaderRecipients, strings.Join(keyIDs, ","))
	req.Header.Set("Authorization", "Bearer edge token")
	return req
}

// eventuallyAnswered sends the request until someone else than the own enclave answers:
// the parent learns of its peers in the background.
func (in *instance) eventuallyAnswered(ctx context.Context, want string, keyIDs ...string) *http.Response {
	GinkgoHelper()
	var resp *http.Response
	Eventually(ctx, func() string {
		resp = in.send(in.sealedTo(ctx, keyIDs...))
		body, err := io.ReadAll(resp.Body)
		Expect(err).NotTo(HaveOccurred())
		return string(body)
	}).Should(Equal(want))
	return resp
}

var _ = Describe("A request that is sealed to others", func() {
	var in *instance
	BeforeEach(func() {
		in = start()
		in.enclave.answers(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "own") })
	})

	It("goes to the parent of one of them, as it is and without the edge token", func(ctx SpecContext) {
		other := in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		resp := in.eventuallyAnswered(ctx, "use1-1 got sealed", nowhere, elsewhere)
		Expect(resp.Header.Get(api.HeaderKeyStatus)).To(Equal("passes"))
		Expect(other.from.Load()).To(Equal(identity.RoleParent))
	}, NodeTimeout(specTimeout))

	It("goes to the least loaded of them, and not to one that is not ready", func(ctx SpecContext) {
		in.peer(ctx, "use1-1", fleet.Load{Running: 3}, true, elsewhere)
		in.peer(ctx, "use1-2", fleet.Load{Running: 1, Queued: 1}, true, further)
		in.peer(ctx, "use1-3", fleet.Load{}, false, nowhere)
		in.eventuallyAnswered(ctx, "use1-2 got sealed", elsewhere, further, nowhere)
	}, NodeTimeout(specTimeout))

	It("goes to another than those that went before it and have had no answer yet, until the load is heard of", func(ctx SpecContext) {
		first := in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		in.peer(ctx, "use1-2", fleet.Load{}, true, further)
		in.eventuallyAnswered(ctx, "use1-2 got sealed", further) // both are known
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere, further)
		first.holds.Store(true)
		leaving, leave := context.WithCancel(ctx)
		asked := first.asked.Load()
		unanswered := make(chan error, 1)
		req := in.sealedTo(leaving, elsewhere, further)
		go func() {
			_, err := in.envoy.Do(req)
			unanswered <- err
		}()
		Eventually(ctx, first.asked.Load).Should(Equal(asked + 1))
		Expect(readAll(in.send(in.sealedTo(ctx, elsewhere, further)))).To(HavePrefix("use1-2 got sealed"))

		By("the first having ended")
		leave()
		Eventually(ctx, unanswered).Should(Receive(MatchError(context.Canceled)))
		first.holds.Store(false)
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere, further)
	}, NodeTimeout(specTimeout))

	It("stays here when the own enclave is one of them", func(ctx SpecContext) {
		other := in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
		asked := other.asked.Load()
		in.eventuallyRegistered(ctx, HaveField("KeyIDs", Not(BeEmpty())))
		own := in.registered(ctx).KeyIDs[0]
		in.eventuallyAnswered(ctx, "own", elsewhere, own)
		Expect(other.asked.Load()).To(Equal(asked))
	}, NodeTimeout(specTimeout))

	It("goes to the own enclave when nobody holds their keys, which says that they are stale", func(ctx SpecContext) {
		in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
		in.eventuallyAnswered(ctx, "own", nowhere)
	}, NodeTimeout(specTimeout))

	It("goes to no region that its data may not be in", func(ctx SpecContext) {
		abroad := in.peerIn(ctx, "use2", "use2-0", fleet.Load{}, true, elsewhere)
		in.peer(ctx, "use1-1", fleet.Load{Running: 9}, true, further)
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere, further)
		allowing := func(regions string) *http.Response {
			req := in.sealedTo(ctx, elsewhere)
			if regions != "" {
				req.Header.Set(api.HeaderAllowedRegions, regions)
			}
			return in.send(req)
		}
		for _, regions := range []string{"use1", "use1,usw2", ""} { // nothing said: this region alone
			Expect(readAll(allowing(regions))).To(Equal("own"), "which says that it holds no such key")
		}
		Expect(abroad.asked.Load()).To(BeZero())
		Expect(readAll(allowing("use1,use2"))).To(Equal("use2-0 got sealed"))
		Expect(abroad.regions.Load()).To(Equal("use1,use2"), "for the other parent to obey")
	}, NodeTimeout(specTimeout))

	It("is refused where its data may not be", func(ctx SpecContext) {
		in.eventuallyRegistered(ctx, HaveField("KeyIDs", Not(BeEmpty())))
		req := in.sealedTo(ctx, in.registered(ctx).KeyIDs...)
		req.Header.Set(api.HeaderAllowedRegions, "use2,usw2")
		expectError(in.send(req), http.StatusForbidden, "region_not_allowed")
	}, NodeTimeout(specTimeout))

	It("goes one hop at most: what a parent sends is for the own enclave", func(ctx SpecContext) {
		in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
		in.envoy = in.client(identity.ID{Region: region, Instance: "use1-9", Role: identity.RoleParent})
		in.eventuallyAnswered(ctx, "own", elsewhere)
	}, NodeTimeout(specTimeout))

	It("is a 503 that Envoy sends again when the other parent breaks it off", func(ctx SpecContext) {
		other := in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		in.eventuallyAnswered(ctx, "use1-1 got sealed", elsewhere)
		other.fails.Store(true)
		resp := in.send(in.sealedTo(ctx, elsewhere))
		Expect(resp.StatusCode).To(Equal(http.StatusServiceUnavailable))
		Expect(resp.Header.Get("Retry-After")).To(Equal("1"))
	}, NodeTimeout(specTimeout))
})

var _ = Describe("A tenant who asks a parent for recipients, while no router answers", func() {
	key, err := credential.New(rand.Reader, "acme")
	if err != nil {
		panic(err)
	}
	ask := func(ctx context.Context, in *instance, model string, token []byte) *http.Response {
		GinkgoHelper()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, in.url(api.PathKeys)+"?model="+model, nil)
		Expect(err).NotTo(HaveOccurred())
		req.Header.Set(api.HeaderTenant, "acme")
		req.Header.Set("Authorization", "Bearer "+string(token))
		return in.send(req)
	}
	withTenant := func(c *parent.Config) {
		c.Tenants = tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant("acme", string(key.EdgeToken()), "enclave"))
	}

	It("gets those of its enclave", func(ctx SpecContext) {
		in := start(withTenant)
		resp := ask(ctx, in, "m", key.EdgeToken())
		Expect(resp.StatusCode).To(Equal(http.StatusOK))
		var answer api.Recipients
		Expect(json.NewDecoder(resp.Body).Decode(&answer)).To(Succeed())
		Expect(answer.Recipients).NotTo(BeEmpty())
	}, NodeTimeout(specTimeout))

	It("gets none of one that drains while another is ready, nor of one in quarantine", func(ctx SpecContext) {
		in := startWashing(func(_ *washing, c *parent.Config) { withTenant(c) })
		in.ready(ctx)
		status := func() int { return ask(ctx, in.instance, "m", key.EdgeToken()).StatusCode }
		Expect(in.store.SetDraining(ctx, instanceID, true)).To(Succeed())
		in.eventuallyRegistered(ctx, HaveField("Draining", true))
		Consistently(status, "300ms").Should(Equal(http.StatusOK), "there is nobody else")
		in.peer(ctx, "use1-1", fleet.Load{}, true, elsewhere)
		Eventually(ctx, status).Should(Equal(http.StatusServiceUnavailable))
		Expect(in.store.SetDraining(ctx, instanceID, false)).To(Succeed())
		Eventually(ctx, status).Should(Equal(http.StatusOK))

		breaking(&in.files)
		Expect(in.wash(ctx).Passed).To(BeFalse())
		expectError(ask(ctx, in.instance, "m", key.EdgeToken()), http.StatusServiceUnavailable, "no_instance_ready")
	}, NodeTimeout(specTimeout))

	It("gets none where its data may not be, by the signed rules or by Envoy's", func(ctx SpecContext) {
		abroad := tenanttest.Tenant("abroad", "token", "another")
		abroad.Regions = tenant.Names{"use2"}
		in := start(func(c *parent.Config) {
			c.Tenants = tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant("acme", string(key.EdgeToken()), "enclave"), abroad)
		})
		for _, bad := range [][3]string{{"abroad", "token", region}, {"abroad", "token", "use2"}, {"acme", string(key.EdgeToken()), "use2"}} {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, in.url(api.PathKeys)+"?model=m", nil)
			Expect(err).NotTo(HaveOccurred())
			req.Header.Set(api.HeaderTenant, bad[0])
			req.Header.Set("Authorization", "Bearer "+bad[1])
			req.Header.Set(api.HeaderAllowedRegions, bad[2])
			expectError(in.send(req), http.StatusServiceUnavailable, "no_instance_ready")
		}
	}, NodeTimeout(specTimeout))

	DescribeTable("is refused", func(ctx SpecContext, model string, token []byte, status int) {
		in := start(withTenant)
		Expect(ask(ctx, in, model, token).StatusCode).To(Equal(status))
	},
		Entry("with another token", NodeTimeout(specTimeout), "m", []byte("other"), http.StatusUnauthorized),
		Entry("for a model of other instances, of which Envoy asks one then", NodeTimeout(specTimeout), "n", key.EdgeToken(), http.StatusServiceUnavailable),
	)
})
