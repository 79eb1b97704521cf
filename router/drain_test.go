package router_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/router"
)

// envoyAdmin stands for the admin of an Envoy, as far as drains go (package xds tests
// that the real one is like that).
type envoyAdmin struct {
	mu       sync.Mutex
	draining bool // guarded by mu
	posts    int  // guarded by mu
}

func (e *envoyAdmin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch r.Method + " " + r.URL.Path {
	case "GET /ready":
		state := "LIVE\n"
		if e.draining {
			w.WriteHeader(http.StatusServiceUnavailable)
			state = "DRAINING\n"
		}
		_, _ = w.Write([]byte(state))
	case "POST /healthcheck/fail":
		e.draining, e.posts = true, e.posts+1
	case "POST /healthcheck/ok":
		e.draining, e.posts = false, e.posts+1
	default:
		http.NotFound(w, r)
	}
}

func (e *envoyAdmin) is(draining bool) { e.mu.Lock(); defer e.mu.Unlock(); e.draining = draining }

func (e *envoyAdmin) drains() bool { e.mu.Lock(); defer e.mu.Unlock(); return e.draining }

func (e *envoyAdmin) told() int { e.mu.Lock(); defer e.mu.Unlock(); return e.posts }

// drains is which regions are drained, as the store says.
type drains struct {
	mu      sync.Mutex
	regions []fleet.Region // guarded by mu
	gone    bool           // guarded by mu: the store is
}

func (d *drains) set(gone bool, regions ...fleet.Region) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone, d.regions = gone, regions
}

func (d *drains) read(context.Context) (map[fleet.Region]bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.gone {
		return nil, errors.New("no store")
	}
	drained := map[fleet.Region]bool{}
	for _, region := range d.regions {
		drained[region] = true
	}
	return drained, nil
}

var _ = Describe("A region that is drained", func() {
	It("is left by its own Envoys and by others' requests, until it is not drained any more", SpecTimeout(time.Minute), func(ctx SpecContext) {
		admin, store := &envoyAdmin{}, &drains{}
		page := httptest.NewServer(admin)
		DeferCleanup(page.Close)
		r := newRouter()
		r.config.SpillTo = []fleet.Region{"use2"}
		r.config.XDS.SpillTo = map[fleet.Region][]fleet.Region{"use1": r.config.SpillTo}
		r.config.Drained, r.config.EnvoyAdmins = store.read, []string{strings.TrimPrefix(page.URL, "http://")}
		r.start().publish(startParent(r.ca, "use1", "use1-0"), startParent(r.ca, "use2", "use2-0"))
		first := func() string { return r.adminPage("/weights").text }
		serves := func(region string) OmegaMatcher {
			return MatchRegexp(`"priority": 0,\s*"endpoints": \[\s*\{\s*"instance": "` + region + `-0"`)
		}
		Eventually(first).Should(serves("use1"))
		Expect(r.offered(ctx)).To(HaveExactElements("claims of use1-0", "claims of use2-0"))
		Expect(admin.told()).To(BeZero())

		By("its own region")
		store.set(false, "use1")
		Eventually(admin.drains, "10s").Should(BeTrue())
		Eventually(first).Should(serves("use2"))
		Expect(r.offered(ctx)).To(HaveExactElements("claims of use2-0", "claims of use1-0"))
		Expect(r.adminPage("/regions").text).To(MatchRegexp(`"use1",[^}]*"drained": ?true`))

		By("an Envoy that starts anew")
		admin.is(false)
		Eventually(admin.drains, "10s").Should(BeTrue())

		By("a store that has gone changes nothing")
		store.set(true)
		admin.is(false)
		Eventually(admin.drains, "10s").Should(BeTrue())

		By("another region in its place")
		store.set(false, "use2")
		Eventually(admin.drains, "10s").Should(BeFalse())
		Eventually(first).Should(serves("use1"))

		By("none")
		store.set(false)
		Eventually(func() string { return r.adminPage("/regions").text }, "10s").ShouldNot(ContainSubstring("drained"))
		Expect(admin.drains()).To(BeFalse())
	})

	It("needs an admin on loopback", func() {
		r := newRouter()
		r.config.EnvoyAdmins = []string{"10.0.0.1:9901"}
		_, err := router.New(r.config)
		Expect(err).To(MatchError(ContainSubstring("loopback")))
	})
})

var _ = Describe("A region's front door", func() {
	It("is open while an instance of the region's own takes requests", func(ctx SpecContext) {
		r := newRouter()
		r.config.SpillTo = []fleet.Region{"use2"}
		r.config.XDS.SpillTo = map[fleet.Region][]fleet.Region{"use1": r.config.SpillTo}
		r.start()
		door := func() int { return r.get(ctx, api.PathDoor).StatusCode }
		Expect(door()).To(Equal(http.StatusServiceUnavailable), "nothing is known yet")
		there := startParent(r.ca, "use2", "use2-0")
		r.publish(there)
		Consistently(door, "100ms").Should(Equal(http.StatusServiceUnavailable), "what another region has is no matter")
		here := startParent(r.ca, "use1", "use1-0")
		r.publish(here, there)
		Eventually(door).Should(Equal(http.StatusOK))
		sick := *here.instance
		sick.Health.Engine = false
		r.publishInstances([]*fleet.Instance{&sick, there.instance})
		Eventually(door).Should(Equal(http.StatusServiceUnavailable))
	})
})
