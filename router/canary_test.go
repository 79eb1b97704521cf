package router_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/envoy/envoytest"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/identity"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/router"
)

// truth stands for the one mrgc.yaml that several routers follow.
type truth struct {
	mu      sync.Mutex
	split   routing.Split     // guarded by mu
	done    []router.Rollback // guarded by mu
	broken  error             // guarded by mu: what an attempt to write it gives
	follows []*running        // guarded by mu
}

// rollBack does what cmd/mrgc does to the file.
func (t *truth) rollBack(r router.Rollback) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.broken != nil:
		return t.broken
	case !slices.Equal(t.split, r.Split):
		return router.ErrDivided
	}
	var err error
	if t.split, err = t.split.With(r.Version, 0); err != nil {
		return err
	}
	t.done = append(t.done, r)
	for _, f := range t.follows {
		settings := f.config.Settings
		settings.Splits = map[string]routing.Split{model: t.split}
		if err := f.router.SetSettings(settings); err != nil {
			return err
		}
	}
	return nil
}

func (t *truth) rolledBack() []router.Rollback {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.done)
}

func (t *truth) breakIt(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.broken = err
}

// onTrial are two routers before an Envoy, which prefers the first and so logs to it,
// and two instances, of versions v1 and v2, with half of the requests each.
func onTrial(auto bool) (first *besideEnvoy, second *running, of *truth) {
	GinkgoHelper()
	envoytest.Binary(GinkgoTB())
	first = &besideEnvoy{envoys: envoytest.NewCA(GinkgoTB())}
	first.running = newRouterBesideEnvoy(first.envoys)
	second = first.beside(newRouterBesideEnvoy(first.envoys))
	of = &truth{split: routing.Split{{Name: "v1", Weight: 500}, {Name: "v2", Weight: 500}}}
	for _, r := range []*running{first.running, second} {
		r.config.Splits, r.config.AutoRollback = map[string]routing.Split{model: of.split}, map[string]bool{model: auto}
		r.config.CanaryWarmUp, r.config.Rollback = -1, of.rollBack
	}
	startTwo(first.running, second)
	of.mu.Lock()
	of.follows = []*running{first.running, second}
	of.mu.Unlock()
	instances := first.startParents()
	for i := range instances {
		instances[i].Versions = map[string]string{model: fmt.Sprintf("v%d", i+1)}
	}
	for _, r := range []*running{first.running, second} {
		r.publishInstances(instances)
	}
	first.startEnvoy([]string{first.grpc, second.grpc}, []string{first.http, second.http})
	return first, second, of
}

// failing is an instance whose engine fails half of the requests, under seal.
func failing() http.HandlerFunc {
	var mu sync.Mutex
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "sealed")
		_ = http.NewResponseController(w).Flush()
		mu.Lock()
		defer mu.Unlock()
		if n++; n%2 == 0 {
			w.Header().Set(http.TrailerPrefix+api.HeaderOutcome, api.OutcomeFailed)
		}
	}
}

// slow is an instance that takes a while until it answers.
func slow(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	select {
	case <-time.After(20 * time.Millisecond):
	case <-r.Context().Done():
	}
	_, _ = io.WriteString(w, "sealed")
}

// trials are those on a router's page.
func (r *running) trials() (page struct {
	Trials []struct {
		Verdict, Signal string
		Compared        int
		Own             int `json:"compared_here"`
		Ratios          map[string]float64
		Auto            bool `json:"auto_rollback"`
	}
	RolledBack []struct{ Version, Reason string } `json:"rolled_back"`
},
) {
	GinkgoHelper()
	Expect(json.Unmarshal([]byte(r.adminPage("/canary").text), &page)).To(Succeed())
	return page
}

var _ = Describe("A version on trial through the real Envoy", func() {
	DescribeTable("is rolled back when it is worse: once, though two routers judge, and without a lost request",
		func(ctx SpecContext, worse http.HandlerFunc, signal string) {
			first, second, of := onTrial(true)
			first.parents[1].Handle(worse)
			finish := first.underLoad(ctx)
			Eventually(of.rolledBack).WithTimeout(60 * time.Second).Should(HaveLen(1))
			Expect(of.rolledBack()[0]).To(And(HaveField("Version", "v2"), HaveField("Reason", HavePrefix(signal+": worse than v1 by "))))
			// Both have it from the one place; nothing goes to it from some moment on.
			last, served := first.parents[1].Served(), first.parents[0].Served()
			Eventually(func() bool {
				before, since := first.parents[1].Served(), first.parents[0].Served()
				Eventually(first.parents[0].Served).WithTimeout(20 * time.Second).Should(BeNumerically(">", since+100))
				last = first.parents[1].Served()
				return last == before
			}).WithTimeout(20 * time.Second).Should(BeTrue())
			Eventually(first.parents[0].Served).WithTimeout(20 * time.Second).Should(BeNumerically(">", served+500))
			Expect(first.parents[1].Served()).To(Equal(last))
			Expect(finish()).To(BeNumerically(">", 500), "and none failed")
			Expect(of.rolledBack()).To(HaveLen(1))
			Expect(first.trials().Trials).To(BeEmpty())
			Expect(second.trials().Trials).To(BeEmpty())
			Expect(append(first.trials().RolledBack, second.trials().RolledBack...)).To(HaveExactElements(HaveField("Version", "v2")))
			Expect(first.figure("mrgc_canary_rollbacks_total", "v2") + second.figure("mrgc_canary_rollbacks_total", "v2")).To(Equal(1))
		},
		Entry("it fails", failing(), "error_rate"),
		Entry("its first token comes later", http.HandlerFunc(slow), "time_to_first_token"),
	)

	It("is judged by each router by what both have seen, and left alone when it is alike", func(ctx SpecContext) {
		first, second, of := onTrial(true)
		finish := first.underLoad(ctx)
		Eventually(func() int { return first.trials().Trials[0].Compared }).WithTimeout(60 * time.Second).Should(BeNumerically(">", 500))
		finish()
		is := first.trials().Trials[0]
		Expect(is.Own).To(Equal(is.Compared), "Envoy logs to the first alone")
		Expect(is.Verdict).To(Equal("no worse"))
		Expect(is.Ratios).To(HaveKey("time_to_first_token"))
		Eventually(func() int { return second.trials().Trials[0].Compared }).WithTimeout(5 * time.Second).Should(Equal(is.Compared))
		Expect(second.trials().Trials[0].Own).To(BeZero())
		Expect(of.rolledBack()).To(BeEmpty())
		metrics := first.adminPage("/metrics").text
		Expect(metrics).To(And(
			ContainSubstring(`mrgc_canary_worse{model="smol",region="use1",version="v2"} 0`),
			MatchRegexp(`mrgc_canary_evidence\{model="smol",region="use1",signal="error_rate",version="v2"\} `),
			MatchRegexp(`mrgc_version_requests_total\{model="smol",outcome="served",region="use1",version="v1"\} [1-9]`),
			MatchRegexp(`mrgc_version_time_to_first_token_seconds_count\{model="smol",region="use1",version="v2"\} [1-9]`),
		))
	})

	It("is judged by other regions, too, by what these routers have seen", func(ctx SpecContext) {
		other := newRouter() // before the others: what they leave open until they stop is not its own
		first, _, of := onTrial(false)
		id := identity.ID{Region: "use2", Role: identity.RoleRouter}
		other.config.Region, other.config.XDS.Region, other.config.SpillTo = "use2", "use2", []fleet.Region{"use1"}
		other.config.Identity = first.envoys.Source(GinkgoTB(), id)
		other.config.Splits, other.config.CanaryWarmUp = map[string]routing.Split{model: of.split}, -1
		other.config.PeersAbroad = map[fleet.Region][]string{"use1": {first.grpc}}
		other.start()
		Eventually(func() string { return other.adminPage("/peers").text }).WithTimeout(10 * time.Second).Should(MatchRegexp(`"region":"use1","address":"\S+","state":"connected"`))
		first.parents[1].Handle(failing())
		first.underLoad(ctx)
		Eventually(func() string { return other.trials().Trials[0].Verdict }).WithTimeout(60 * time.Second).Should(Equal("worse"))
		Expect(other.trials().Trials[0].Own).To(BeZero())
	})

	It("is said to be worse and left where it is, if that is what mrgc.yaml says", func(ctx SpecContext) {
		first, _, of := onTrial(false)
		first.parents[1].Handle(failing())
		first.underLoad(ctx)
		Eventually(func() string { return first.trials().Trials[0].Verdict }).WithTimeout(60 * time.Second).Should(Equal("worse"))
		Eventually(first.log).WithTimeout(5 * time.Second).Should(gbytes.Say(`roll it back with mrgc canary abort.*version=v2.*error_rate: worse than v1`))
		Expect(first.figure("mrgc_canary_worse", "v2")).To(Equal(1))
		Expect(of.rolledBack()).To(BeEmpty())
	})

	It("is rolled back as soon as it can be", func(ctx SpecContext) {
		first, second, of := onTrial(true)
		of.breakIt(errors.New("read-only file system"))
		first.parents[1].Handle(failing())
		first.underLoad(ctx)
		Eventually(first.log).WithTimeout(60 * time.Second).Should(gbytes.Say(`cannot be rolled back; trying on.*read-only file system`))
		Eventually(func() int { return first.figure("mrgc_canary_rollback_failures_total", "v2") }).WithTimeout(20 * time.Second).Should(BeNumerically(">", 1))
		of.breakIt(nil)
		Eventually(of.rolledBack).WithTimeout(20 * time.Second).Should(HaveLen(1))
		Eventually(func() int { return len(first.trials().Trials) + len(second.trials().Trials) }).Should(BeZero())
	})
})
