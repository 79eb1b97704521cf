package parent_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/tenant/tenanttest"
	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/parent"
	"github.com/mrgc/mrgc/standin/devca"
)

func TestParent(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "parent")
}

const (
	region     = "use1"
	instanceID = "use1-0"
	// specTimeout ends a test that waits for what does not come.
	specTimeout = 20 * time.Second
	// eventually is ample for what takes a few of the intervals below.
	eventually = 10 * time.Second
)

var (
	envoyID   = identity.ID{Region: region, Role: identity.RoleEnvoy}
	routerID  = identity.ID{Region: region, Role: identity.RoleRouter}
	parentID  = identity.ID{Region: region, Instance: instanceID, Role: identity.RoleParent}
	enclaveID = identity.ID{Region: region, Instance: instanceID, Role: identity.RoleEnclave}
	guardID   = identity.ID{Region: region, Instance: instanceID, Role: identity.RoleGuard}
)

// instance is a parent that runs, with all that surrounds it.
type instance struct {
	dir       string // short, for sockets
	authority *devca.Authority
	enclave   *fakeEnclave
	guard     *fakeGuard
	store     *flakyStore
	listener  net.Listener
	relay     net.Listener // the engine relay's, which is dialled at relayAddress
	envoy     *http.Client
	parent    *parent.Parent // once it runs

	stop context.CancelFunc
	done chan error // gets what Run returns
}

func (in *instance) relayAddress() string { return "unix:" + filepath.Join(in.dir, "v_5001") }

// start runs a parent between a fake enclave and a fake guard.
func start(options ...func(*parent.Config)) *instance {
	GinkgoHelper()
	in := surroundings()
	config := in.config()
	for _, option := range options {
		option(&config)
	}
	in.run(config)
	return in
}

// run runs a parent until the test is over, or it is stopped.
func (in *instance) run(config parent.Config) {
	GinkgoHelper()
	service, err := parent.New(config)
	Expect(err).NotTo(HaveOccurred())
	in.parent = service
	ctx, stop := context.WithCancel(context.Background())
	in.stop, in.done = stop, make(chan error, 1)
	go func() {
		in.done <- service.Run(ctx, in.listener)
		close(in.done)
	}()
	DeferCleanup(func() {
		stop()
		Eventually(in.done).WithTimeout(eventually).Should(BeClosed())
	})
	in.envoy = in.client(envoyID)
}

// surroundings are an instance's, without its parent.
func surroundings() *instance {
	GinkgoHelper()
	DeferCleanup(func(before []gleak.Goroutine) {
		Eventually(gleak.Goroutines).WithTimeout(eventually).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
	return furtherSurroundings()
}

// furtherSurroundings are those of an instance beside another, whose goroutines come and
// go meanwhile.
func furtherSurroundings() *instance {
	GinkgoHelper()
	in := &instance{}
	var err error
	in.dir, err = os.MkdirTemp("", "mrgc")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, in.dir)
	in.authority, err = devca.New(time.Now())
	Expect(err).NotTo(HaveOccurred())

	in.enclave = newFakeEnclave("unix:" + filepath.Join(in.dir, "v") + ":5000")
	in.guard = newFakeGuard(in.source(guardID))
	store, err := sqlite.Open(context.Background(), sqlite.Config{Path: filepath.Join(in.dir, "fleet.db")})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(store.Close)
	in.store = &flakyStore{Store: store}
	in.listener, err = net.Listen("tcp", "127.0.0.1:0")
	Expect(err).NotTo(HaveOccurred())
	in.relay, err = vsock.Listen(in.relayAddress())
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { // Run closes them too
		_ = in.listener.Close()
		_ = in.relay.Close()
	})
	return in
}

// config is a complete one, with short intervals.
func (in *instance) config() parent.Config {
	GinkgoHelper()
	return parent.Config{
		Instance: fleet.Instance{
			ID: instanceID, Region: region, Zone: "use1-az1", Address: in.listener.Addr().String(), Models: []string{"m"},
		},
		Store:         in.store,
		Identity:      in.source(parentID),
		Tenants:       tenanttest.Keeper(GinkgoTB()),
		DialEnclave:   in.enclave.dial,
		EngineRelay:   in.relay,
		DialGuard:     in.guard.dial,
		Settings:      parent.Settings{HeartbeatInterval: 50 * time.Millisecond},
		ProbeInterval: 20 * time.Millisecond,
		DrainTimeout:  eventually,
		EngineSlots:   4,
		Logger:        slog.New(slog.NewTextHandler(GinkgoWriter, nil)),
	}
}

// source is the identity of a part of the cluster.
func (in *instance) source(id identity.ID) *identity.Source {
	GinkgoHelper()
	dir := filepath.Join(in.dir, strings.NewReplacer("/", "_", ":", "_").Replace(id.String()))
	Expect(in.authority.WriteFiles(dir, id, time.Now())).To(Succeed())
	source, err := identity.Open(context.Background(), "dir:"+dir, "")
	Expect(err).NotTo(HaveOccurred())
	return source
}

// client speaks HTTP/2 with the parent, as whoever id is.
func (in *instance) client(id identity.ID) *http.Client {
	GinkgoHelper()
	return in.clientOf(id, instanceID)
}

// clientOf does it with the parent of an instance.
func (in *instance) clientOf(id identity.ID, instance string) *http.Client {
	GinkgoHelper()
	transport := &http.Transport{
		TLSClientConfig: in.source(id).ClientTLS(func(peer identity.ID) bool {
			return peer == identity.ID{Region: region, Instance: instance, Role: identity.RoleParent}
		}),
		ForceAttemptHTTP2:  true,
		DisableCompression: true,
	}
	DeferCleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func (in *instance) url(path string) string { return "https://" + in.listener.Addr().String() + path }

// sealed is a request as Envoy passes it on.
func (in *instance) sealed(ctx context.Context, body string) *http.Request {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, in.url(api.PathSealed), strings.NewReader(body))
	Expect(err).NotTo(HaveOccurred())
	req.Header.Set("Content-Type", api.ContentTypeSealedRequest)
	req.Header.Set(api.HeaderModel, "m")
	return req
}

// send gives the response to a request; its body is closed after the test.
func (in *instance) send(req *http.Request) *http.Response {
	GinkgoHelper()
	resp, err := in.envoy.Do(req)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(resp.Body.Close)
	return resp
}

// sending is send in the background: the response, or none when it fails.
func (in *instance) sending(req *http.Request) <-chan *http.Response {
	got := make(chan *http.Response, 1)
	go func() {
		defer close(got)
		if resp, err := in.envoy.Do(req); err == nil {
			got <- resp
		}
	}()
	return got
}

// get asks a path as the router does.
func (in *instance) get(path string) *http.Response {
	GinkgoHelper()
	resp, err := in.client(routerID).Get(in.url(path))
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(resp.Body.Close)
	return resp
}

// registered is how the fleet knows the instance; nil: it does not.
func (in *instance) registered(ctx context.Context) *fleet.Instance {
	snapshot, err := in.store.Snapshot(ctx)
	if err != nil {
		return nil
	}
	for _, one := range snapshot.Instances {
		if one.ID == instanceID {
			return one
		}
	}
	return nil
}

// eventuallyRegistered waits until the fleet knows the instance as matcher says.
func (in *instance) eventuallyRegistered(ctx context.Context, matcher OmegaMatcher) {
	GinkgoHelper()
	Eventually(ctx, in.registered).Should(And(Not(BeNil()), matcher))
}

func expectError(resp *http.Response, status int, code string) {
	GinkgoHelper()
	Expect(resp.StatusCode).To(Equal(status))
	Expect(api.ParseError(status, []byte(readAll(resp)))).To(HaveField("Code", code))
}

func readAll(resp *http.Response) string {
	GinkgoHelper()
	body, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return string(body)
}

var errStore = errors.New("the store is away")
