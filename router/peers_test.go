package router_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/peers"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/router"
)

// listeners are a router's, which can be opened again where they were.
func listenersAt(addresses ...string) router.Listeners {
	GinkgoHelper()
	var l [3]net.Listener
	for i, address := range addresses {
		var err error
		l[i], err = net.Listen("tcp", address)
		Expect(err).NotTo(HaveOccurred())
	}
	return router.Listeners{GRPC: l[0], HTTP: l[1], Admin: l[2]}
}

// beside is another router of the first one's region, for the same tenant. It is
// to be made before either starts.
func (r *running) beside(made *running) *running {
	made.key, made.config.Tenants = r.key, r.config.Tenants
	return made
}

// startTwo starts routers that follow each other.
func startTwo(a, b *running) {
	GinkgoHelper()
	const free = "127.0.0.1:0"
	onA, onB := listenersAt(free, free, free), listenersAt(free, free, free)
	a.config.Peers, b.config.Peers = []string{onB.GRPC.Addr().String()}, []string{onA.GRPC.Addr().String()}
	a.startOn(onA)
	b.startOn(onB)
}

// figure is the sum of a metric's values over all its labels that match.
func (r *running) figure(metric, labels string) (sum int) {
	for _, m := range regexp.MustCompile(`(?m)^`+metric+`(?:\{.*`+labels+`.*\})? (\S+)$`).FindAllStringSubmatch(r.adminPage("/metrics").text, -1) {
		value, _ := strconv.ParseFloat(m[1], 64)
		sum += int(value)
	}
	return sum
}

func (r *running) picks() int { return r.figure("mrgc_picks_total", `outcome="picked"`) }

// work is the picker's own, and its peers', as its metrics say.
func (r *running) work() [2]int {
	return [2]int{r.figure("mrgc_in_flight", "instance"), r.figure("mrgc_peers_in_flight", "instance")}
}

// follow opens a stream of the routers' own service.
func (r *running) follow(ctx context.Context, config *tls.Config) (grpc.ClientStream, error) {
	GinkgoHelper()
	conn, err := grpc.NewClient("passthrough:///"+r.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(conn.Close)
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/mrgc.peers.v1.Peers/Follow")
	if err == nil {
		err = s.SendMsg(&emptypb.Empty{})
	}
	return s, err
}

// pick asks the router as its region's Envoy where a tenant's request of 1,024 and 64
// tokens should go, and gives what it says.
func (r *running) pick(ctx context.Context) string {
	GinkgoHelper()
	envoy := identity.ID{Region: string(r.config.Region), Role: identity.RoleEnvoy}
	config := sourceOf(r.ca, envoy).ClientTLS(func(peer identity.ID) bool { return peer.Role == identity.RoleRouter })
	conn, err := grpc.NewClient("passthrough:///"+r.grpc, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	Expect(err).NotTo(HaveOccurred())
	defer conn.Close()
	s, err := extprocv3.NewExternalProcessorClient(conn).Process(ctx)
	Expect(err).NotTo(HaveOccurred())
	var headers corev3.HeaderMap
	for name, value := range map[string]string{
		"x-request-id": fmt.Sprint(time.Now().UnixNano()), "content-type": api.ContentTypeSealedRequest,
		"authorization": "Bearer " + string(r.key.EdgeToken()), api.HeaderTenant: r.key.Tenant(), api.HeaderModel: model,
		api.HeaderRecipients: kidOf("use1-0") + "," + kidOf("use2-0"), api.HeaderRequestID: "0123456789abcdef0123456789abcdef", api.HeaderSize: "1024/64",
	} {
		headers.Headers = append(headers.Headers, &corev3.HeaderValue{Key: strings.ToLower(name), RawValue: []byte(value)})
	}
	Expect(s.Send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &headers}}})).To(Succeed())
	answer, err := s.Recv()
	Expect(err).NotTo(HaveOccurred())
	if immediate := answer.GetImmediateResponse(); immediate != nil {
		return api.ParseError(int(immediate.GetStatus().GetCode()), immediate.GetBody()).Code
	}
	return "picked"
}

var _ = Describe("A router's peers", func() {
	It("hear it speak, also when it has nothing to say", SpecTimeout(20*time.Second), func(ctx SpecContext) {
		r := newRouter().start()
		s, err := r.follow(ctx, r.tlsOf(routerID))
		Expect(err).NotTo(HaveOccurred())
		var last *peers.Message
		for range 3 {
			var raw wrapperspb.BytesValue
			Expect(s.RecvMsg(&raw)).To(Succeed())
			m, err := peers.Decode(raw.GetValue())
			Expect(err).NotTo(HaveOccurred())
			Expect(m.InFlight).To(BeEmpty())
			if last != nil {
				Expect(m.Epoch).To(Equal(last.Epoch))
				Expect(m.Sequence).To(BeNumerically(">", last.Sequence))
			}
			last = m
		}
	})

	DescribeTable("are routers of its region and nobody else", func(ctx SpecContext, id identity.ID, code codes.Code) {
		r := newRouter().start()
		s, err := r.follow(ctx, r.tlsOf(id))
		if err == nil {
			err = s.RecvMsg(&wrapperspb.BytesValue{})
		}
		Expect(status.Code(err)).To(Equal(code), "%v", err)
	},
		Entry("an Envoy of the region", envoyID, codes.PermissionDenied),
		Entry("a router of another region", identity.ID{Region: "use2", Role: identity.RoleRouter}, codes.PermissionDenied),
		Entry("a parent", parentID("use1", "use1-0"), codes.Unavailable),
	)

	It("of other regions hear what tenants have used of their limits, and hold them to it", SpecTimeout(30*time.Second), func(ctx SpecContext) {
		a, b := newRouter(), newRouter()
		acme := tenanttest.Tenant("acme", string(a.key.EdgeToken()), "enclave")
		acme.TokensPerMinute = 4000 // three requests, and not four
		a.config.Tenants = tenanttest.Keeper(GinkgoTB(), acme)
		a.beside(b)
		b.ca, b.config.Region, b.config.XDS.Region, b.config.SpillTo = a.ca, "use2", "use2", []fleet.Region{"use1"}
		b.config.Identity = sourceOf(a.ca, identity.ID{Region: "use2", Role: identity.RoleRouter})
		a.start()
		b.config.PeersAbroad = map[fleet.Region][]string{"use1": {a.grpc}}
		b.start()
		for _, r := range []*running{a, b} {
			r.publish(startParent(a.ca, "use1", "use1-0"), startParent(a.ca, "use2", "use2-0"))
		}
		Eventually(func() string { return b.adminPage("/peers").text }).WithTimeout(10 * time.Second).Should(ContainSubstring(`"connected"`))
		Eventually(func() string { return a.pick(ctx) }).WithTimeout(5 * time.Second).Should(Equal("picked"))
		Expect([]string{a.pick(ctx), a.pick(ctx), a.pick(ctx)}).To(Equal([]string{"picked", "picked", "rate_limit_exceeded"}))
		// What b is asked before it has heard it lets through.
		Eventually(func() string { return b.pick(ctx) }).WithTimeout(5 * time.Second).WithPolling(500 * time.Millisecond).Should(Equal("rate_limit_exceeded"))
		Expect(b.picks()).To(BeNumerically("<=", 1))
	})

	It("are given no configuration", SpecTimeout(20*time.Second), func(ctx SpecContext) {
		r := newRouter().start()
		s, err := r.dial(ctx, r.tlsOf(routerID))
		if err == nil {
			_, err = s.Recv()
		}
		Expect(status.Code(err)).To(Equal(codes.PermissionDenied), "%v", err)
	})

	It("are shown to the operator, gone ones too", func() {
		a := newRouter()
		b := a.beside(newRouter())
		b.ca, b.config.Identity = a.ca, sourceOf(a.ca, routerID)
		startTwo(a, b)
		Eventually(func() int { return a.figure("mrgc_peers_connected", "") }).Should(Equal(1))
		Expect(a.adminPage("/peers").text).To(And(ContainSubstring(b.grpc), ContainSubstring(`"connected"`), ContainSubstring(`"expired":false`)))
		b.stop()
		page := ""
		Eventually(func() string { page = a.adminPage("/peers").text; return page }).WithTimeout(5 * time.Second).Should(ContainSubstring(`"not heard"`))
		Expect(page).To(ContainSubstring(`"expired":true`), "at once, and not when its second is over")
		Expect(a.figure("mrgc_peers_connected", "")).To(BeZero())
		Eventually(func() int { return a.figure("mrgc_peer_view_age_seconds", "peer") }).WithTimeout(5 * time.Second).Should(BeNumerically(">=", 1))
	})

	It("are all that are found under a name, but itself", func() {
		a := newRouter()
		b := a.beside(newRouter())
		b.ca, b.config.Identity = a.ca, sourceOf(a.ca, routerID)
		onA := listenersAt("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0")
		_, port, err := net.SplitHostPort(onA.GRPC.Addr().String())
		Expect(err).NotTo(HaveOccurred())
		b.startOn(listenersAt("127.0.0.2:"+port, "127.0.0.1:0", "127.0.0.1:0"))
		a.config.Peers = []string{"routers.internal:" + port}
		both := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::ffff:127.0.0.2")}
		var found atomic.Pointer[[]netip.Addr]
		found.Store(&both)
		a.prepare = func(r *router.Router) {
			r.LookUpEvery(5 * time.Millisecond)
			r.LookUp(func(host string) ([]netip.Addr, error) {
				if now := found.Load(); host == "routers.internal" && now != nil {
					return *now, nil
				}
				return nil, fmt.Errorf("no such host %s", host)
			})
		}
		a.startOn(onA)
		Eventually(func() string { return a.adminPage("/peers").text }).Should(And(
			MatchRegexp(`"127.0.0.1:\d+","state":"this router"`), MatchRegexp(`"127.0.0.2:\d+","state":"connected"`)))
		Expect(a.figure("mrgc_peers_connected", "")).To(Equal(1))

		found.Store(nil)
		Eventually(a.log).Should(gbytes.Say("peer's name is not found; its last addresses stay, trying on.*no such host"))
		Consistently(a.log, "50ms").ShouldNot(gbytes.Say("not found"))
		Expect(a.adminPage("/peers").text).To(ContainSubstring(`"connected"`))

		alone := both[:1]
		found.Store(&alone)
		Eventually(func() string { return a.adminPage("/peers").text }).ShouldNot(ContainSubstring("127.0.0.2"))
		Expect(a.adminPage("/peers").text).To(ContainSubstring("127.0.0.1"))
	})
})

// twoBesideEnvoys are two routers that follow each other, over the same two
// instances.
func twoBesideEnvoys() (a *besideEnvoy, b *running, instances []*fleet.Instance) {
	GinkgoHelper()
	envoytest.Binary(GinkgoTB())
	a = &besideEnvoy{envoys: envoytest.NewCA(GinkgoTB())}
	a.running = newRouterBesideEnvoy(a.envoys)
	b = a.beside(newRouterBesideEnvoy(a.envoys))
	startTwo(a.running, b)
	instances = a.startParents()
	for _, r := range []*running{a.running, b} {
		r.publishInstances(instances)
	}
	return a, b, instances
}

func (r *running) publishInstances(instances []*fleet.Instance) {
	GinkgoHelper()
	Eventually(r.store.snapshots).Should(BeSent(fleet.NewSnapshot(time.Now(), instances)))
}

// underLoad has tenants ask all the time until the function that it gives is
// called, which says how many requests there were, and fails if one did.
func (r *besideEnvoy) underLoad(ctx context.Context) (finish func() int64) {
	var asked atomic.Int64
	var over atomic.Bool
	failures := make(chan error, 1000)
	var tenants sync.WaitGroup
	for range 4 {
		tenants.Go(func() {
			for !over.Load() && ctx.Err() == nil {
				if err := r.ask(ctx); err != nil && ctx.Err() == nil {
					select {
					case failures <- err:
					default:
					}
				}
				asked.Add(1)
			}
		})
	}
	finish = func() int64 {
		GinkgoHelper()
		over.Store(true)
		tenants.Wait()
		close(failures)
		for err := range failures {
			Expect(err).NotTo(HaveOccurred())
		}
		return asked.Load()
	}
	DeferCleanup(func() { over.Store(true); tenants.Wait() })
	return finish
}

// gate passes TCP on until it is shut: then connections stay open, and nothing
// comes through, as with a process that is stopped.
type gate struct {
	address string
	shut    sync.RWMutex
}

func gateTo(address string) *gate {
	GinkgoHelper()
	l := listen()
	g := &gate{address: l.Addr().String()}
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	pass := func(to, from net.Conn) {
		buffer := make([]byte, 32<<10)
		for {
			n, err := from.Read(buffer)
			g.shut.RLock()
			g.shut.RUnlock() //nolint:staticcheck // waits until it is open
			if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
				_, _ = from.Close(), to.Close()
				return
			}
		}
	}
	running.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", address)
			if err != nil {
				_ = in.Close()
				continue
			}
			mu.Lock()
			open = append(open, in, out)
			mu.Unlock()
			running.Go(func() { pass(out, in) })
			running.Go(func() { pass(in, out) })
		}
	})
	DeferCleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range open {
			_ = c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return g
}

var _ = Describe("Two routers through the real Envoy", func() {
	const enough = 50 // picks that are no accident

	It("are both used in turn as one dies and comes back, and no request fails", SpecTimeout(60*time.Second), func(ctx SpecContext) {
		a, b, instances := twoBesideEnvoys()
		again := a.beside(&running{store: &fakeStore{snapshots: make(chan *fleet.Snapshot)}, log: a.log, ca: a.ca})
		a.startEnvoy([]string{a.grpc, b.grpc}, []string{a.http, b.http})
		finish := a.underLoad(ctx)
		Eventually(a.picks).WithTimeout(10 * time.Second).Should(BeNumerically(">", enough))
		Expect(b.picks()).To(BeNumerically("<", enough))
		// From a, but for a machine so busy that it failed a first health check.
		Expect(a.adminPage("/envoys").text + b.adminPage("/envoys").text).To(ContainSubstring(`"synced": true`))

		a.stop()
		Eventually(b.picks).WithTimeout(10 * time.Second).Should(BeNumerically(">", 2*enough))
		Eventually(func() string { return b.adminPage("/envoys").text }).WithTimeout(20 * time.Second).Should(ContainSubstring(`"synced": true`))

		again.config = a.config
		again.config.Store = again.store
		again.startOn(listenersAt(a.grpc, a.http, "127.0.0.1:0"))
		again.publishInstances(instances)
		Eventually(again.picks).WithTimeout(20 * time.Second).Should(BeNumerically(">", enough))
		before := b.picks()
		Eventually(again.picks).WithTimeout(10 * time.Second).Should(BeNumerically(">", 3*enough))
		Expect(b.picks()-before).To(BeNumerically("<", enough), "the local router is preferred again")

		GinkgoWriter.Printf("%d requests\n", finish())
		// Envoy's log has stayed with the other router, which tells.
		for _, r := range []*running{again, b} {
			Eventually(r.work).WithTimeout(5 * time.Second).Should(Equal([2]int{0, 0}))
		}
	})

	It("are both used in turn as one hangs and goes on, and no request fails", SpecTimeout(60*time.Second), func(ctx SpecContext) {
		a, b, _ := twoBesideEnvoys()
		toA, toAOverHTTP := gateTo(a.grpc), gateTo(a.http)
		a.startEnvoy([]string{toA.address, b.grpc}, []string{toAOverHTTP.address, b.http})
		finish := a.underLoad(ctx)
		Eventually(a.picks).WithTimeout(10 * time.Second).Should(BeNumerically(">", enough))
		Expect(b.picks()).To(BeNumerically("<", enough))

		toA.shut.Lock()
		open := sync.OnceFunc(toA.shut.Unlock)
		DeferCleanup(open)
		Eventually(b.picks).WithTimeout(20 * time.Second).Should(BeNumerically(">", 2*enough))
		Eventually(func() string { return b.adminPage("/envoys").text }).WithTimeout(20 * time.Second).Should(ContainSubstring(`"synced": true`))
		open()
		before := a.picks()
		Eventually(a.picks).WithTimeout(20 * time.Second).Should(BeNumerically(">", before+enough))
		finish()
		// What the log had in the connection that was given up is lost, of either one's
		// picks: both doubt what they had in flight when it broke off, or came.
		for _, r := range []*running{a.running, b} {
			Eventually(func() int { return r.work()[0] }).WithTimeout(20 * time.Second).Should(BeZero())
		}
	})

	It("with an Envoy each see the same in flight, until one is gone", SpecTimeout(60*time.Second), func(ctx SpecContext) {
		a, b, _ := twoBesideEnvoys()
		a.startEnvoy([]string{a.grpc, b.grpc}, []string{a.http, b.http})
		toB := &besideEnvoy{running: b, envoys: a.envoys}
		toB.startEnvoy([]string{b.grpc, a.grpc}, []string{b.http, a.http})
		for _, r := range []*running{a.running, b} {
			Eventually(r.work).WithTimeout(5 * time.Second).Should(Equal([2]int{0, 0}))
		}
		release := make(chan struct{})
		open := sync.OnceFunc(func() { close(release) })
		DeferCleanup(open)
		for _, p := range a.parents {
			p.Handle(func(w http.ResponseWriter, _ *http.Request) { <-release; _, _ = io.WriteString(w, "at last") })
		}
		var asking sync.WaitGroup
		for i := range 8 {
			asking.Go(func() {
				defer GinkgoRecover()
				through := a
				if i < 3 {
					through = toB
				}
				Expect(through.ask(ctx)).To(Succeed())
			})
		}
		Eventually(a.work).WithTimeout(5 * time.Second).Should(Equal([2]int{5, 3}))
		Eventually(b.work).WithTimeout(5 * time.Second).Should(Equal([2]int{3, 5}))
		for _, id := range []string{"use1-0", "use1-1"} {
			label := `instance="` + id + `"`
			Expect(a.figure("mrgc_in_flight", label)).To(Equal(b.figure("mrgc_peers_in_flight", label)))
			Expect(b.figure("mrgc_in_flight", label)).To(Equal(a.figure("mrgc_peers_in_flight", label)))
		}
		b.stop()
		Eventually(a.work).WithTimeout(5 * time.Second).Should(Equal([2]int{5, 0}))
		open()
		asking.Wait()
		Eventually(a.work).WithTimeout(5 * time.Second).Should(Equal([2]int{0, 0}))
	})
})
