package e2e_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
)

// partOf says whether a child is of a region.
func partOf(name, region string) bool {
	return strings.Contains(name+"-", "-"+region+"-") && name != "connect"
}

// keepDown kills every process of a region at once, and each that is started
// again, until release is called.
func (c *cluster) keepDown(region string) (release func()) {
	GinkgoHelper()
	kill := func() (killed int) {
		for name, pid := range c.pids() {
			if partOf(name, region) && syscall.Kill(pid, syscall.SIGKILL) == nil {
				killed++
			}
		}
		return killed
	}
	Expect(kill()).To(BeNumerically(">=", 9), "an Envoy, two routers, and two instances of three processes")
	var killing sync.WaitGroup
	stop := make(chan struct{})
	killing.Go(func() {
		defer GinkgoRecover()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				kill()
			}
		}
	})
	return sync.OnceFunc(func() {
		close(stop)
		killing.Wait()
	})
}

var _ = Describe("A region", func() {
	var c *cluster
	BeforeEach(func() {
		engine := newToldEngine()
		c = startCluster("--engine-url", engine.server.URL, "--model-name", "told", "--ask=false")
		engine.does(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select { // so that some are in the region when it dies
			case <-time.After(50 * time.Millisecond):
			case <-r.Context().Done():
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"object":"chat.completion"}`)
		})
	})

	// without sends requests while a region is gone and when it is back.
	without := func(ctx context.Context, fault string, gone func() (back func())) {
		GinkgoHelper()
		r := c.send(8)
		DeferCleanup(r.cancel)
		Eventually(ctx, r.count).Should(BeNumerically(">", 50))

		died := time.Now()
		bringBack := gone()
		DeferCleanup(bringBack)
		Eventually(ctx, r.answered(died)).Should(BeNumerically(">", 200))
		Expect(picksOf(ctx, c.env()["MRGC_ADMIN_USE2"], "picked")).To(BeNumerically(">", 0), "the next region serves them")

		bringBack()
		released := time.Now()
		before := picksOf(ctx, c.env()["MRGC_ADMIN_USE1"], "picked") // of a router that was killed: none
		Eventually(ctx, func() int { return picksOf(ctx, c.env()["MRGC_ADMIN_USE1"], "picked") }).Should(BeNumerically(">", before+20))
		back := since(released)

		sent := r.stop()
		var failures []string
		var slowest, next time.Duration
		for _, one := range sent {
			if one.failure != "" {
				failures = append(failures, one.failure)
			}
			if one.ended.After(died) {
				slowest = max(slowest, one.took)
				if next == 0 && one.ended.Add(-one.took).After(died) {
					next = one.ended.Sub(died)
				}
			}
		}
		reportFault("%s: %d of %d requests failed; the first one sent afterwards was answered %s later; slowest answer %s; the region serves again %s after it was let",
			fault, len(failures), len(sent), next.Round(time.Millisecond), slowest.Round(time.Millisecond), back)
		Expect(failures).To(BeEmpty())
	}

	It("can die, and come back, at the cost of no request that has no byte of an answer", func(ctx SpecContext) {
		without(ctx, "a region's processes killed", func() func() { return c.keepDown("use1") })
	}, NodeTimeout(4*time.Minute))

	It("can hang, and go on, at the cost of no request that has no byte of an answer", func(ctx SpecContext) {
		without(ctx, "a region's processes stopped (SIGSTOP)", func() func() {
			stopped := c.pids()
			all := func(sig syscall.Signal) {
				for name, pid := range stopped {
					if partOf(name, "use1") {
						Expect(syscall.Kill(pid, sig)).To(Succeed(), name)
					}
				}
			}
			all(syscall.SIGSTOP)
			return sync.OnceFunc(func() { all(syscall.SIGCONT) })
		})
	}, NodeTimeout(4*time.Minute))
})

// picksOf asks a router how many of its picks had an outcome; of one that cannot be
// asked none had.
func picksOf(ctx context.Context, admin, outcome string) int {
	found := regexp.MustCompile(`mrgc_picks_total\{[^}]*outcome="` + outcome + `"[^}]*\} (\d+)`).FindSubmatch(metricsAt(ctx, admin))
	if found == nil {
		return 0
	}
	n, _ := strconv.Atoi(string(found[1]))
	return n
}

// metricsAt is what an admin has of metrics; nothing while it cannot be asked.
func metricsAt(ctx context.Context, admin string) []byte {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, admin+"/metrics", nil)
	if err != nil {
		return nil
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil
	}
	return content
}

// answered counts requests that ended after a time.
func (r *requests) answered(after time.Time) func() int {
	return func() (n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, one := range r.sent {
			if one.ended.After(after) {
				n++
			}
		}
		return n
	}
}

var _ = Describe("A region that has no room", func() {
	It("has another one serve what is too much, though all its instances are well", func(ctx SpecContext) {
		c := startCluster("--regions", "use1,use2", "--instances", "1", "--engine", "sim", "--sim-profile", "a100", "--sim-slots", "2", "--ask=false")
		here, there := c.env()["MRGC_ADMIN_USE1"], c.env()["MRGC_ADMIN_USE2"]
		Eventually(ctx, func() string { return get(ctx, here+"/regions") }).Should(MatchRegexp(`"use2",\s*"round_trip_seconds": ?0\.`), "it is measured")
		Eventually(ctx, func() string { return get(ctx, here+"/load") }).Should(MatchRegexp(`"use2-0",\s*"age": ?"fresh"`))

		var asking errgroup.Group
		for i := range 24 {
			asking.Go(func() error {
				status, body, err := c.tryChat(ctx, http.DefaultClient, c.base(), fmt.Sprintf("%d: what is there to do elsewhere?", i), 128)
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("status %d: %s", status, body)
				}
				return err
			})
		}
		Expect(asking.Wait()).To(Succeed())
		Expect(picksOf(ctx, here, "overflow")).To(BeNumerically(">", 0))
		Expect(picksOf(ctx, here, "picked")).To(BeNumerically(">", 0))
		Expect(picksOf(ctx, there, "picked")).To(BeZero(), "nobody came to the other region's door")
		Expect(get(ctx, c.env()["MRGC_METRICS_USE2_0"])).To(MatchRegexp(`mrgc_parent_requests_total\{[^}]*enclave[^}]*\} [1-9]`))
		AddReportEntry("overflow", fmt.Sprintf("%d of 24 requests were sent elsewhere", picksOf(ctx, here, "overflow")))
	}, NodeTimeout(2*time.Minute))
})
