package router_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/standin/devca"
	"github.com/mrgc/mrgc/xds"
)

const model = "smol"

var (
	envoyID  = identity.ID{Region: "use1", Role: identity.RoleEnvoy}
	routerID = identity.ID{Region: "use1", Role: identity.RoleRouter}
)

func parentID(region fleet.Region, instance string) identity.ID {
	return identity.ID{Region: string(region), Instance: instance, Role: identity.RoleParent}
}

// noLeaks wants every goroutine that the test starts to end with it.
func noLeaks() {
	DeferCleanup(func(before []gleak.Goroutine) {
		Eventually(gleak.Goroutines).WithTimeout(5 * time.Second).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
}

func newAuthority() *devca.Authority {
	GinkgoHelper()
	ca, err := devca.New(time.Now())
	Expect(err).NotTo(HaveOccurred())
	return ca
}

func sourceOf(ca *devca.Authority, id identity.ID) *identity.Source {
	GinkgoHelper()
	dir := GinkgoT().TempDir()
	Expect(ca.WriteFiles(dir, id, time.Now())).To(Succeed())
	source, err := identity.Open(context.Background(), "dir:"+dir, "")
	Expect(err).NotTo(HaveOccurred())
	return source
}

// clientOf speaks HTTPS as an identity, with anyone of the authority's.
func clientOf(source *identity.Source) *http.Client {
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: source.ClientTLS(func(identity.ID) bool { return true }), ForceAttemptHTTP2: true,
	}}
	DeferCleanup(client.CloseIdleConnections)
	return client
}

// parent is an instance's parent, as far as a router sees it.
type parent struct {
	instance *fleet.Instance
	ordered  atomic.Int64 // washes
	refuses  atomic.Bool  // to be washed
	says     atomic.Value // string: to an order that it takes

	mu      sync.Mutex
	asked   int              // guarded by mu
	answers http.HandlerFunc // guarded by mu
}

// claimsOf stands for the claims of an instance's key; the router does not read
// them.
func claimsOf(id string) []byte { return []byte("claims of " + id) }

func kidOf(id string) string {
	sum := sha256.Sum256(claimsOf(id))
	return hex.EncodeToString(sum[:8])
}

// startParent starts a parent that shows its instance's one key.
func startParent(ca *devca.Authority, region fleet.Region, id string) *parent {
	GinkgoHelper()
	p := &parent{answers: offer(api.Recipient{Claims: claimsOf(id), Attestation: []byte("document of " + id)})}
	p.says.Store(`{"wash":"` + id + `/2026-03-14T09:26:53.589000Z"}`)
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == api.PathWash && !p.refuses.Load() {
				p.ordered.Add(1)
				w.WriteHeader(http.StatusAccepted)
				_, _ = io.WriteString(w, p.says.Load().(string))
				return
			}
			if r.URL.Path == api.PathWash {
				api.Errorf(http.StatusNotFound, "no_washes", "not here").Write(w)
				return
			}
			if r.Method != http.MethodGet { // for load reports, of which it has none
				http.NotFound(w, r)
				return
			}
			p.mu.Lock()
			p.asked++
			answers := p.answers
			p.mu.Unlock()
			answers(w, r)
		}),
		TLSConfig: sourceOf(ca, parentID(region, id)).ServerTLS(func(peer identity.ID) bool { return peer.Role == identity.RoleRouter }),
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	listener := listen()
	go func() { _ = server.ServeTLS(listener, "", "") }()
	DeferCleanup(server.Close)
	p.instance = &fleet.Instance{
		ID: id, Region: region, Address: listener.Addr().String(), Models: []string{model}, KeyIDs: []string{kidOf(id)},
		Health: fleet.Health{Enclave: true, Engine: true}, Load: fleet.Load{Slots: 4}, HeartbeatAt: time.Now(),
	}
	return p
}

func offer(recipients ...api.Recipient) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.Recipients{Recipients: recipients})
	}
}

func (p *parent) answer(with http.HandlerFunc) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers = with
}

// block has the parent answer only once release is called.
func (p *parent) block() (release func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	gate, answers := make(chan struct{}), p.answers
	p.answers = func(w http.ResponseWriter, r *http.Request) {
		<-gate
		answers(w, r)
	}
	release = sync.OnceFunc(func() { close(gate) })
	DeferCleanup(release)
	return release
}

// times is how often the parent was asked.
func (p *parent) times() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func snapshotOf(parents ...*parent) *fleet.Snapshot {
	var instances []*fleet.Instance
	for _, p := range parents {
		instances = append(instances, p.instance)
	}
	return fleet.NewSnapshot(time.Now(), instances)
}

// fakeStore is watched, and nothing else.
type fakeStore struct {
	fleet.Store
	snapshots chan *fleet.Snapshot
}

func (s *fakeStore) Watch(ctx context.Context) <-chan *fleet.Snapshot {
	out := make(chan *fleet.Snapshot)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case snapshot := <-s.snapshots:
				select {
				case out <- snapshot:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// running is a router of region use1.
type running struct {
	ca                *devca.Authority
	key               credential.Key
	config            router.Config
	store             *fakeStore
	log               *gbytes.Buffer
	grpc, http, admin string // addresses

	silence time.Duration        // of a parent that reports load; 0: as it is
	prepare func(*router.Router) // before it runs; nil: as it is
	router  *router.Router       // once it has started
	stop    func()               // likewise; at the latest at the test's end
}

// newRouter prepares a router; start starts it.
func newRouter() *running {
	GinkgoHelper()
	noLeaks()
	r := &running{ca: newAuthority(), store: &fakeStore{snapshots: make(chan *fleet.Snapshot)}, log: gbytes.NewBuffer()}
	var err error
	r.key, err = credential.New(rand.Reader, "acme")
	Expect(err).NotTo(HaveOccurred())
	dir := GinkgoT().TempDir()
	r.config = router.Config{
		Region: "use1", Settings: router.Settings{SpillTo: []fleet.Region{"use2"}, Models: []string{model}, StaleAfter: time.Hour, Version: "first"},
		Tenants: tenanttest.Keeper(GinkgoTB(), tenanttest.Tenant("acme", string(r.key.EdgeToken()), "enclave")),
		XDS: xds.Config{
			Region:        "use1",
			TenantAddress: netip.MustParseAddrPort("127.0.0.1:443"), HealthAddress: netip.MustParseAddrPort("127.0.0.1:8080"),
			MinPushInterval: time.Millisecond,
		},
		Store: r.store, Identity: sourceOf(r.ca, routerID), Logger: slog.New(slog.NewTextHandler(r.log, nil)),
		TenantCertificate: filepath.Join(dir, "tls.crt"), TenantKey: filepath.Join(dir, "tls.key"),
	}
	r.renewCertificate()
	return r
}

// renewCertificate writes a new tenant certificate and gives it.
func (r *running) renewCertificate() (certPEM []byte) {
	GinkgoHelper()
	certPEM, keyPEM, err := r.ca.ServerCertificate(time.Now(), "localhost")
	Expect(err).NotTo(HaveOccurred())
	r.writeCertificate(certPEM, keyPEM)
	return certPEM
}

func (r *running) writeCertificate(certPEM, keyPEM []byte) {
	GinkgoHelper()
	Expect(os.WriteFile(r.config.TenantCertificate, certPEM, 0o600)).To(Succeed())
	Expect(os.WriteFile(r.config.TenantKey, keyPEM, 0o600)).To(Succeed())
}

func listen() net.Listener {
	GinkgoHelper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	return listener
}

func (r *running) start() *running {
	GinkgoHelper()
	return r.startOn(router.Listeners{GRPC: listen(), HTTP: listen(), Admin: listen()})
}

func (r *running) startOn(on router.Listeners) *running {
	GinkgoHelper()
	made, err := router.New(r.config)
	Expect(err).NotTo(HaveOccurred())
	made.PollCertificate(5 * time.Millisecond)
	if r.silence > 0 {
		made.TakeForBroken(r.silence)
	}
	if r.prepare != nil {
		r.prepare(made)
	}
	r.router = made
	r.grpc, r.http, r.admin = on.GRPC.Addr().String(), on.HTTP.Addr().String(), on.Admin.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- made.Run(ctx, on) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		Eventually(ended).WithTimeout(5 * time.Second).Should(Receive(BeNil()))
	})
	DeferCleanup(r.stop)
	return r
}

// publish is the store's next snapshot.
func (r *running) publish(parents ...*parent) {
	GinkgoHelper()
	Eventually(r.store.snapshots).Should(BeSent(snapshotOf(parents...)))
}

// get asks the HTTPS port as an Envoy, for the tenant.
func (r *running) get(ctx context.Context, path string, change ...func(http.Header)) *http.Response {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+r.http+path, nil)
	Expect(err).NotTo(HaveOccurred())
	req.Header.Set(api.HeaderTenant, r.key.Tenant())
	req.Header.Set("Authorization", "Bearer "+string(r.key.EdgeToken()))
	for _, f := range change {
		f(req.Header)
	}
	resp, err := clientOf(sourceOf(r.ca, envoyID)).Do(req)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(resp.Body.Close)
	return resp
}

// page is an admin page.
type page struct {
	status      int
	contentType string
	text        string
}

func (r *running) adminPage(path string) page {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + r.admin + path)
	if err != nil {
		return page{text: err.Error()}
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return page{text: err.Error()}
	}
	return page{resp.StatusCode, resp.Header.Get("Content-Type"), string(content)}
}

func refusal(resp *http.Response) *api.Error {
	GinkgoHelper()
	content, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return api.ParseError(resp.StatusCode, content)
}
