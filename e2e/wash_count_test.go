package e2e_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"
)

var _ = Describe("Many washes", Label("washes"), func() {
	It("leave nothing of any request, in the enclave or in the parent, and fail none", func(ctx SpecContext) {
		rounds, requests := 4, 200
		if os.Getenv("MRGC_TEST_LONG") != "" {
			rounds, requests = 200, 10_000
		}
		c := startCluster("--regions", "use1", "--instances", "1", "--routers", "1", "--wash", "--ask=false", "--engine", "sim", "--sim-profile", "h100-llama-8b")
		const instance, parent = "use1-0", "parent-use1-0"
		// Each prompt begins with the mark, so that one scan finds what is left of any.
		w := &washing{cluster: c, mark: "washed" + rand.Text()}

		By("scanning while a request runs: the scan finds it")
		held, release := context.WithCancel(ctx)
		running := make(chan error, 1)
		go func() {
			_, _, err := c.tryChat(held, http.DefaultClient, c.base(), w.mark, 4000)
			running <- err
		}()
		enclave := w.enclave(parent)
		Eventually(ctx, func() bool { return w.found(enclave) }, "20s", "50ms").Should(BeTrue())
		release()
		Expect(<-running).To(MatchError(context.Canceled))

		var calm, busy, gone, took []time.Duration
		for round := range rounds {
			part := requests / rounds / 2
			calm = append(calm, w.ask(ctx, part)...)
			gone = append(gone, w.clean(ctx, enclave, parent))

			wash := make(chan washed, 1)
			go func() {
				defer GinkgoRecover()
				wash <- w.wash(ctx, instance)
			}()
			busy = append(busy, w.ask(ctx, part)...)
			var record washed
			Eventually(ctx, wash, "60s").Should(Receive(&record), "round %d", round)
			Expect(record.Passed).To(BeTrue(), "round %d: %s", round, record.Reason)
			Expect(record.Steps).To(HaveLen(6))
			took = append(took, record.took())
			Expect(alive(enclave)).To(BeFalse(), "the old enclave has ended")
			enclave = w.enclave(parent)
			gone = append(gone, w.clean(ctx, enclave, parent))
		}
		AddReportEntry("washes", fmt.Sprintf("%d requests and %d full washes: 0 residues, the last gone %s after the last of some requests had ended, scans included; "+
			"answers p50 %s, p99 %s, slowest %s; sent while washing p50 %s, p99 %s, slowest %s; a wash takes p50 %s, slowest %s", len(calm)+len(busy), rounds,
			slices.Max(gone).Round(time.Millisecond), percentile(calm, 0.5), percentile(calm, 0.99), percentile(calm, 1),
			percentile(busy, 0.5), percentile(busy, 0.99), percentile(busy, 1), percentile(took, 0.5), percentile(took, 1)))
		Expect(get(ctx, c.env()["MRGC_METRICS_USE1_0"])).To(ContainSubstring(
			fmt.Sprintf(`mrgc_parent_washes_total{instance="use1-0",outcome="passed",region="use1",trigger="operator"} %d`, rounds)))
	}, NodeTimeout(time.Hour))
})

// washing is an instance that is washed while it works.
type washing struct {
	*cluster
	mark string
	last string // id of the wash before
}

// enclave is the process of the one enclave that its parent has.
func (w *washing) enclave(parent string) int {
	GinkgoHelper()
	children := childrenOf(w.pids()[parent])
	Expect(children).To(HaveLen(1))
	return children[0]
}

func (w *washing) found(pid int) bool {
	GinkgoHelper()
	found, scanned, err := scanMemory(pid, []byte(w.mark))
	if errors.Is(err, os.ErrPermission) {
		Skip("reading another process's memory takes root")
	}
	Expect(err).NotTo(HaveOccurred())
	Expect(scanned).To(BeNumerically(">", 4<<20), "the scan reads the heap")
	return found
}

// ask sends so many requests, four at a time, none of which may fail, and gives how
// long each took.
func (w *washing) ask(ctx context.Context, requests int) []time.Duration {
	GinkgoHelper()
	took := make([]time.Duration, requests)
	var group errgroup.Group
	group.SetLimit(4)
	for i := range took {
		group.Go(func() error {
			began := time.Now()
			status, body, err := w.tryChat(ctx, http.DefaultClient, w.base(), w.mark+rand.Text(), 4)
			took[i] = time.Since(began)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("status %d: %s", status, body)
			}
			return err
		})
	}
	Expect(group.Wait()).To(Succeed())
	return took
}

// clean waits until nothing is left of what has ended, and gives how long that took.
func (w *washing) clean(ctx context.Context, enclave int, parent string) time.Duration {
	GinkgoHelper()
	ended := time.Now()
	Eventually(ctx, func() bool { return w.found(enclave) }, "10s", "50ms").Should(BeFalse())
	Expect(w.found(w.pids()[parent])).To(BeFalse())
	return time.Since(ended)
}

// wash has the instance washed in full, and gives the record.
func (w *washing) wash(ctx context.Context, instance string) (record washed) {
	GinkgoHelper()
	w.mrgc("wash", "now", instance, "--admin", w.env()["MRGC_ADMIN_USE1"])
	Eventually(ctx, func() string {
		var newest []washed
		Expect(json.Unmarshal([]byte(w.mrgc("wash", "show", instance, "--last", "1", "--state", w.env()["MRGC_STATE"], "-o", "json")), &newest)).To(Succeed())
		if len(newest) > 0 {
			record = newest[0]
		}
		return record.ID
	}, "60s", "100ms").ShouldNot(BeElementOf(w.last, ""))
	w.last = record.ID
	return record
}
