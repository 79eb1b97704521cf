package parent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/vsock"
	"github.com/mrgc/mrgc/parent"
)

// withKMS has the parent carry connections to an echo that stands for KMS.
func withKMS(in *instance, credentials func(context.Context) (api.AWSCredentials, error)) func(*parent.Config) {
	return func(c *parent.Config) {
		echo, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(echo.Close)
		go func() {
			for {
				conn, err := echo.Accept()
				if err != nil {
					return
				}
				go func() {
					defer conn.Close()
					_, _ = io.Copy(conn, conn)
				}()
			}
		}()
		c.KMSRelay, err = vsock.Listen(in.kmsAddress())
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(func() { _ = c.KMSRelay.Close() }) // Run closes it too
		c.DialKMS = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", echo.Addr().String())
		}
		c.Credentials = credentials
		c.ProbeInterval = 50 * time.Millisecond
	}
}

func (in *instance) kmsAddress() string { return "unix:" + filepath.Join(in.dir, "v_5002") }

var _ = Describe("The way to KMS", func() {
	var in *instance
	var log *audit.Log
	var path string
	var registry *prometheus.Registry
	var id atomic.Pointer[string] // of the credentials; nil: there are none

	BeforeEach(func() {
		in, registry = surroundings(), prometheus.NewRegistry()
		id.Store(new("AKIAFIRST"))
		config := in.config()
		withKMS(in, func(context.Context) (api.AWSCredentials, error) {
			held := id.Load()
			if held == nil {
				return api.AWSCredentials{}, errors.New("no role")
			}
			return api.AWSCredentials{AccessKeyID: *held, SecretAccessKey: "secret", SessionToken: "token"}, nil
		})(&config)
		path = filepath.Join(GinkgoT().TempDir(), "audit.log")
		var err error
		log, err = audit.Open(path)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(log.Close)
		config.Audit, config.Metrics = log, registry
		in.run(config)
	})

	It("is a pipe of bytes", func(ctx SpecContext) {
		conn, err := vsock.Dial(ctx, in.kmsAddress())
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(conn.Close)
		text := strings.Repeat("ciphertext ", 1000)
		_, err = io.WriteString(conn, text)
		Expect(err).NotTo(HaveOccurred())
		back := make([]byte, len(text))
		_, err = io.ReadFull(conn, back)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(back)).To(Equal(text))
	}, NodeTimeout(specTimeout))

	It("comes with credentials: at the enclave's start, when there are new ones, and when it is another enclave", func(ctx SpecContext) {
		Eventually(ctx, in.enclave.handedCredentials).Should(Equal([]string{"AKIAFIRST secret token"}))
		id.Store(new("AKIASECOND"))
		Eventually(ctx, in.enclave.handedCredentials).Should(Equal([]string{"AKIAFIRST secret token", "AKIASECOND secret token"}))
		in.enclave.stop()
		in.enclave.start()
		Eventually(ctx, in.enclave.handedCredentials).Should(Equal([]string{"AKIASECOND secret token"}))
	}, NodeTimeout(specTimeout))

	It("is audited: each data key that KMS released, once, also the last ones before the end", func(ctx SpecContext) {
		release := func(sequence uint64) api.KeyRelease {
			return api.KeyRelease{Sequence: sequence, Time: time.Unix(int64(sequence), 0), Took: 30 * time.Millisecond, RequestID: fmt.Sprint("request ", sequence), Tenant: "acme"}
		}
		tell := func(said api.KeyReleases) {
			in.enclave.mu.Lock()
			defer in.enclave.mu.Unlock()
			in.enclave.released = said
		}
		refused := release(2)
		refused.Error = "KMS refuses: AccessDeniedException"
		tell(api.KeyReleases{Enclave: "first", Releases: []api.KeyRelease{release(1), refused}})
		sequence := func() uint64 { return log.Head().Sequence }
		Eventually(ctx, sequence).Should(BeEquivalentTo(2))
		Consistently(ctx, sequence, "200ms").Should(BeEquivalentTo(2), "the enclave is told that they are recorded")
		fleet := func(sequence uint64, step, key, failed string) api.KeyRelease {
			return api.KeyRelease{Sequence: sequence, Error: failed, Fleet: &api.FleetStep{Step: step, Fleet: "prod", Region: "use1", Epoch: "41", KeyID: key}}
		}
		tell(api.KeyReleases{Enclave: "second", Lost: 7, Releases: []api.KeyRelease{
			release(4), fleet(5, api.FleetSeedRefused, "", "KMS refuses"), fleet(6, api.FleetSeedMade, "0a", ""),
			fleet(7, api.FleetSeedReleased, "0b", ""), fleet(8, api.FleetKeyWiped, "0a", ""),
			{Sequence: 9, Error: "no document", Host: &api.HostStep{Key: "f0", Refusals: 3}},
			{Sequence: 10, Host: &api.HostStep{Image: "engine-1", Key: "f0", Refusals: 9}},
		}})
		Eventually(ctx, sequence).Should(BeEquivalentTo(10))
		in.stop()
		Eventually(ctx, in.done).Should(Receive(BeNil()))
		Expect(observations(registry, "mrgc_parent_key_release_seconds", "outcome")).To(Equal(map[string]uint64{"released": 2, "refused": 1}))

		content, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		var records []audit.Record
		_, err = audit.Walk(bytes.NewReader(content), func(r audit.Record) { records = append(records, r) })
		Expect(err).NotTo(HaveOccurred())
		Expect(records).To(HaveExactElements(
			And(HaveField("Event", audit.KeyReleased), HaveField("About", And(HaveKeyWithValue("request", "request 1"), HaveKeyWithValue("tenant", "acme"), HaveKeyWithValue("instance", instanceID), HaveKeyWithValue("took_seconds", "0.0300")))),
			And(HaveField("Event", audit.KeyRefused), HaveField("About", HaveKeyWithValue("error", refused.Error))),
			And(HaveField("Event", audit.RecordsLost), HaveField("About", HaveKeyWithValue("count", "7"))),
			And(HaveField("Event", audit.KeyReleased), HaveField("About", HaveKeyWithValue("request", "request 4"))),
			And(HaveField("Event", audit.FleetSeedRefused), HaveField("About", And(HaveKeyWithValue("error", "KMS refuses"), HaveKeyWithValue("instance", instanceID),
				HaveKeyWithValue("fleet", "prod"), HaveKeyWithValue("region", "use1"), HaveKeyWithValue("epoch", "41"), Not(HaveKey("key")), Not(HaveKey("request"))))),
			And(HaveField("Event", audit.FleetSeedMade), HaveField("About", HaveKeyWithValue("key", "0a"))),
			And(HaveField("Event", audit.FleetSeedReleased), HaveField("About", HaveKeyWithValue("key", "0b"))),
			And(HaveField("Event", audit.FleetKeyWiped), HaveField("About", HaveKeyWithValue("key", "0a"))),
			And(HaveField("Event", audit.EngineHostRefused), HaveField("About", And(HaveKeyWithValue("instance", instanceID), HaveKeyWithValue("error", "no document"), HaveKeyWithValue("refusals", "3"), HaveKeyWithValue("key", "f0"), Not(HaveKey("image")), Not(HaveKey("request"))))),
			And(HaveField("Event", audit.EngineHostTrusted), HaveField("About", And(HaveKeyWithValue("image", "engine-1"), HaveKeyWithValue("refusals", "9"), Not(HaveKey("error"))))),
		))
	}, NodeTimeout(specTimeout))

	It("leaves an instance well that has no credentials", func(ctx SpecContext) {
		id.Store(nil)
		in.eventuallyRegistered(ctx, healthy())
	}, NodeTimeout(specTimeout))
})
