package router_test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/attest"
	"github.com/mrgc/mrgc/internal/audit"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/nsm"
	"github.com/mrgc/mrgc/internal/release"
	"github.com/mrgc/mrgc/router"
	"github.com/mrgc/mrgc/standin/softnsm"
)

// attested is a security module that measures this test's program.
func attested() (module nsm.Module, root *x509.Certificate, measured attest.Release) {
	GinkgoHelper()
	made, err := softnsm.NewRoot(time.Now())
	Expect(err).NotTo(HaveOccurred())
	soft, err := softnsm.New(softnsm.Config{Root: made, Region: "us-east-1", InstanceID: "i-1", Role: "test"})
	Expect(err).NotTo(HaveOccurred())
	dir, err := os.MkdirTemp("", "nsm")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	listener, err := net.Listen("unix", filepath.Join(dir, "nsm"))
	Expect(err).NotTo(HaveOccurred())
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- soft.Serve(ctx, listener) }()
	DeferCleanup(func() {
		stop()
		Eventually(served).Should(Receive(BeNil()))
	})
	module, err = nsm.Dial("unix:" + listener.Addr().String())
	Expect(err).NotTo(HaveOccurred())
	self, err := os.Executable()
	Expect(err).NotTo(HaveOccurred())
	pcrs, err := softnsm.Measure(self)
	Expect(err).NotTo(HaveOccurred())
	return module, made.Certificate(), attest.Release{Version: 7, Name: "this test", PCRs: pcrs}
}

var _ = Describe("An inspector", func() {
	var (
		module    nsm.Module
		measured  attest.Release
		manifest  *release.Manifest
		inspector router.Inspector
		instance  *fleet.Instance

		mu     sync.Mutex
		events []audit.Event // guarded by mu
	)
	recorded := func() (names []string) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range events {
			names = append(names, e.Name)
		}
		return names
	}
	BeforeEach(func() {
		noLeaks()
		var root *x509.Certificate
		module, root, measured = attested()
		manifest = &release.Manifest{Version: 3, MinVersion: 7, Releases: []attest.Release{measured}}
		events = nil
		inspector = router.NewInspector(router.Inspection{
			Manifest: func() *release.Manifest { return manifest }, Roots: []*x509.Certificate{root},
			Record: func(more ...audit.Event) {
				mu.Lock()
				defer mu.Unlock()
				events = append(events, more...)
			},
		})
		instance = &fleet.Instance{ID: "use1-0", Region: "use1"}
	})
	recipient := func(ctx context.Context, claims string) api.Recipient {
		GinkgoHelper()
		digest := sha256.Sum256([]byte(claims))
		document, err := module.Attest(ctx, nsm.Request{UserData: digest[:]})
		Expect(err).NotTo(HaveOccurred())
		return api.Recipient{Claims: []byte(claims), Attestation: document}
	}
	gauges := func() map[string]float64 {
		GinkgoHelper()
		registry := prometheus.NewRegistry()
		Expect(registry.Register(inspector)).To(Succeed())
		families, err := registry.Gather()
		Expect(err).NotTo(HaveOccurred())
		values := map[string]float64{}
		for _, family := range families {
			for _, m := range family.GetMetric() {
				values[family.GetName()+" "+m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
			}
		}
		return values
	}
	page := func() (p struct {
		Version   uint64
		Instances []struct {
			Instance, Release, Error string
			Trusted                  bool
		}
	},
	) {
		GinkgoHelper()
		w := httptest.NewRecorder()
		inspector.Page(w, nil)
		Expect(json.Unmarshal(w.Body.Bytes(), &p)).To(Succeed())
		return p
	}

	It("reports once which release an enclave runs, and shows it", func(ctx SpecContext) {
		for range 3 {
			inspector.Inspect(instance, []api.Recipient{recipient(ctx, "a"), recipient(ctx, "b")}, time.Now())
		}
		Expect(recorded()).To(Equal([]string{audit.Manifest, audit.EnclaveRelease}))
		Expect(events[1].About).To(And(HaveKeyWithValue("instance", "use1-0"), HaveKeyWithValue("version", "7"), HaveKeyWithValue("pcr0", measured.PCRs[0].String())))
		Expect(page().Instances).To(HaveExactElements(And(HaveField("Trusted", true), HaveField("Release", "this test"))))
		Expect(gauges()).To(Equal(map[string]float64{"mrgc_enclave_trusted use1-0": 1, "mrgc_enclave_release use1-0": 7}))
	})

	DescribeTable("finds out, and reports once,",
		func(ctx SpecContext, change func(good api.Recipient) []api.Recipient, reason string) {
			good := recipient(ctx, "claims")
			inspector.Inspect(instance, []api.Recipient{good}, time.Now())
			for range 3 {
				inspector.Inspect(instance, change(good), time.Now())
			}
			Expect(recorded()).To(ContainElement(audit.DocumentRefused))
			refusals := 0
			for _, e := range events {
				if e.Name == audit.DocumentRefused {
					refusals++
					Expect(e.About["error"]).To(ContainSubstring(reason))
				}
			}
			Expect(refusals).To(Equal(1))
			Expect(page().Instances).To(HaveExactElements(And(HaveField("Trusted", false), HaveField("Error", ContainSubstring(reason)))))
			Expect(gauges()).To(Equal(map[string]float64{"mrgc_enclave_trusted use1-0": 0}))
		},
		Entry("that the enclave is none of the releases", func(good api.Recipient) []api.Recipient {
			other := measured
			other.PCRs = attest.PCRs{0: attest.ExtendedPCR(nil), 1: measured.PCRs[1], 2: measured.PCRs[2]}
			manifest = &release.Manifest{Version: 4, MinVersion: 7, Releases: []attest.Release{other}}
			return []api.Recipient{good}
		}, "match no trusted release"),
		Entry("that its release is too old", func(good api.Recipient) []api.Recipient {
			manifest = &release.Manifest{Version: 4, MinVersion: 8, Releases: manifest.Releases}
			return []api.Recipient{good}
		}, "below the minimum version 8"),
		Entry("a document for other claims", func(good api.Recipient) []api.Recipient {
			good.Claims = []byte("others")
			return []api.Recipient{good}
		}, "user_data"),
		Entry("one document among others that was changed", func(good api.Recipient) []api.Recipient {
			changed := append([]byte(nil), good.Attestation...)
			changed[len(changed)-1] ^= 1
			return []api.Recipient{good, {Claims: good.Claims, Attestation: changed}}
		}, "signature does not verify"),
		Entry("an enclave of another region", func(good api.Recipient) []api.Recipient {
			instance.Region = "use2"
			return []api.Recipient{good}
		}, `names region "us-east-1"`),
		Entry("an enclave that shows nothing", func(api.Recipient) []api.Recipient { return nil }, "no recipient"),
	)

	It("reports a roll-out, and a roll-back", func(ctx SpecContext) {
		good := recipient(ctx, "claims")
		inspector.Inspect(instance, []api.Recipient{good}, time.Now())
		later := measured
		later.Version = 8
		manifest = &release.Manifest{Version: 4, MinVersion: 7, Releases: []attest.Release{later}} // the same image under a new version
		inspector.Inspect(instance, []api.Recipient{good}, time.Now())
		Expect(recorded()).To(Equal([]string{audit.Manifest, audit.EnclaveRelease, audit.Manifest, audit.EnclaveRelease}))
		Expect(events[3].About).To(And(HaveKeyWithValue("version", "8"), HaveKeyWithValue("before", "7")))
	})

	It("looks again at once when there is another manifest, and only then", func(ctx SpecContext) {
		inspector.Inspect(instance, []api.Recipient{recipient(ctx, "claims")}, time.Now())
		inspector.Recheck(time.Now().Add(time.Hour)) // when the document is old: nothing was asked
		Expect(page().Instances).To(HaveExactElements(HaveField("Trusted", true)))
		manifest = &release.Manifest{Version: 4, MinVersion: 8, Releases: manifest.Releases}
		inspector.Recheck(time.Now())
		Expect(page().Instances).To(HaveExactElements(HaveField("Trusted", false)))
		Expect(recorded()).To(Equal([]string{audit.Manifest, audit.EnclaveRelease, audit.Manifest, audit.DocumentRefused}))
	})

	It("forgets instances that have gone", func(ctx SpecContext) {
		inspector.Inspect(instance, []api.Recipient{recipient(ctx, "claims")}, time.Now())
		inspector.Forget(fleet.NewSnapshot(time.Now(), []*fleet.Instance{instance}))
		Expect(page().Instances).To(HaveLen(1))
		inspector.Forget(fleet.NewSnapshot(time.Now(), nil))
		Expect(page().Instances).To(BeEmpty())
	})
})
