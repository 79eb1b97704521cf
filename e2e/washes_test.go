package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/bench/result"
)

const (
	// goneWithin is how long after its end something of a request may be found; more
	// is a residue. An enclave takes a second, where it gets a processor.
	goneWithin = 10 * time.Second
	scanEvery  = 500 * time.Millisecond
	askers     = 3
)

// marked are requests that carry markers, each its own: random, as all share a random
// beginning by which one reading of a memory finds every one of them.
type marked struct {
	prefix  string
	lengths []int // of what is between the two markers of prompts, in turn, times ten bytes

	mu    sync.Mutex
	next  int               // guarded by mu
	ended map[int]time.Time // guarded by mu
	sent  []request         // guarded by mu: in the order in which they ended
}

const markerDigits = 6

func newMarked(lengths []int) *marked {
	return &marked{prefix: "mark" + rand.Text(), lengths: lengths, ended: map[int]time.Time{}}
}

// prompt has the marker of a request at its beginning, and at its end, which may be
// several buffers away.
func (m *marked) prompt() (id int, text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id = m.next
	m.next++
	marker := fmt.Sprintf("%s%0*d", m.prefix, markerDigits, id)
	return id, marker + " " + strings.Repeat("and so on ", m.lengths[id%len(m.lengths)]) + marker
}

// asked takes note of a request that has ended.
func (m *marked) asked(id int, began time.Time, status int, body string, err error) {
	one := request{ended: time.Now(), took: time.Since(began)}
	if err != nil || status != http.StatusOK {
		one.failure = fmt.Sprintf("request %d: status %d, error %v: %s", id, status, err, body)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended[id] = one.ended
	m.sent = append(m.sent, one)
}

func (m *marked) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.sent)
}

// in reads a process's memory, and gives the requests of which it holds something. Of
// one that has gone meanwhile it is what was read.
func (m *marked) in(pid int) (ids map[int]bool, err error) {
	ids = map[int]bool{}
	overlap := len(m.prefix) + markerDigits
	err = readMemory(pid, make([]byte, 1<<20+overlap), overlap, func(b []byte) {
		for at := bytes.Index(b, []byte(m.prefix)); at >= 0; {
			b = b[at+len(m.prefix):]
			if len(b) >= markerDigits { // else the next piece has all of it
				if id, err := strconv.Atoi(string(b[:markerDigits])); err == nil {
					ids[id] = true
				}
			}
			at = bytes.Index(b, []byte(m.prefix))
		}
	})
	if !alive(pid) || errors.Is(err, syscall.ESRCH) { // gone, or dead and not reaped yet
		err = nil
	}
	return ids, err
}

// residues is what reading memories has found.
type residues struct {
	scans    int
	enclaves map[int]bool // every one that there was, by its process id
	running  int          // markers found of requests that were under way
	longest  time.Duration
	found    []string // residues; empty: none
}

// scan reads the enclaves of some instances, those that are about to go among them, and
// their parents.
func (s *residues) scan(c *cluster, m *marked, instances []string) {
	GinkgoHelper()
	s.scans++
	pids := c.pids()
	for _, instance := range instances {
		parent := pids["parent-"+instance]
		for _, enclave := range childrenOf(parent) {
			s.enclaves[enclave] = true
			s.judge(m, instance+"'s enclave", enclave)
		}
		ids, err := m.in(parent)
		Expect(err).NotTo(HaveOccurred(), instance)
		for id := range ids {
			s.found = append(s.found, fmt.Sprintf("%s's parent has seen request %d", instance, id))
		}
	}
}

func (s *residues) judge(m *marked, name string, pid int) {
	GinkgoHelper()
	began := time.Now()
	ids, err := m.in(pid)
	Expect(err).NotTo(HaveOccurred(), name)
	m.mu.Lock()
	defer m.mu.Unlock()
	for id := range ids {
		ended, ok := m.ended[id]
		if !ok || ended.After(began) {
			s.running++
			continue
		}
		after := began.Sub(ended)
		s.longest = max(s.longest, after)
		if after > goneWithin {
			s.found = append(s.found, fmt.Sprintf("%s holds request %d, %s after its end", name, id, after.Round(time.Millisecond)))
		}
	}
}

// campaign is so many requests at least, and so many full washes meanwhile.
type campaign struct {
	name             string
	instances        int
	requests, washes int
	lengths          []int // of prompts
	args             []string
}

// washing is what came of one.
type washing struct {
	campaign
	took         time.Duration
	calm, during []float64 // milliseconds of requests
	washed       []washed
	residues     residues
	after        int // requests after the last wash
	failed       []string
}

// run asks without pause, some requests first without any wash, and reads memories all
// the while.
func (g campaign) run(ctx SpecContext) washing {
	GinkgoHelper()
	c := startCluster(append(g.args, "--regions", "use1", "--instances", fmt.Sprint(g.instances), "--routers", "1", "--wash", "--ask=false")...)
	w := washing{campaign: g, residues: residues{enclaves: map[int]bool{}}}
	m := newMarked(g.lengths)
	var instances []string
	for i := range g.instances {
		instances = append(instances, fmt.Sprintf("use1-%d", i))
	}
	w.scanFinds(ctx, c, m, instances)

	began := time.Now()
	asking, stop := context.WithCancel(ctx)
	defer stop()
	var asked, scanned sync.WaitGroup
	transport := &http.Transport{MaxIdleConnsPerHost: askers}
	defer transport.CloseIdleConnections()
	for range askers {
		asked.Go(func() {
			defer GinkgoRecover()
			for asking.Err() == nil {
				id, text := m.prompt()
				began := time.Now()
				status, body, err := c.tryChat(ctx, &http.Client{Transport: transport}, c.base(), text, 1)
				m.asked(id, began, status, body, err)
			}
		})
	}
	scanned.Go(func() {
		defer GinkgoRecover()
		pause := time.NewTicker(scanEvery)
		defer pause.Stop()
		for asking.Err() == nil {
			w.residues.scan(c, m, instances)
			<-pause.C
		}
	})
	Eventually(ctx, m.count, "5m", "100ms").Should(BeNumerically(">=", g.requests/5))
	washes := time.Now()
	w.wash(ctx, c, instances)
	washesEnded := time.Now()
	Eventually(ctx, m.count, "20m", "100ms").Should(BeNumerically(">=", g.requests))
	stop()
	asked.Wait()
	scanned.Wait()
	w.took = time.Since(began)

	By("looking once more, now that all requests have ended")
	left := func() []int {
		last := residues{enclaves: map[int]bool{}}
		last.scan(c, m, instances)
		Expect(last.found).To(BeEmpty())
		Expect(last.enclaves).To(HaveLen(len(instances)), "the old ones are gone")
		w.residues.longest = max(w.residues.longest, last.longest)
		for pid := range w.residues.enclaves {
			Expect(last.enclaves[pid]).To(Equal(alive(pid)), "an enclave that was replaced has ended")
		}
		var held []int
		for pid := range last.enclaves {
			ids, err := m.in(pid)
			Expect(err).NotTo(HaveOccurred())
			held = slices.AppendSeq(held, maps.Keys(ids))
		}
		return held
	}
	Eventually(ctx, left, goneWithin, scanEvery).Should(BeEmpty())
	for _, one := range m.sent {
		if one.failure != "" {
			w.failed = append(w.failed, one.failure)
		}
		ms := one.took.Seconds() * 1e3
		switch {
		case one.ended.Before(washes):
			w.calm = append(w.calm, ms)
		case one.ended.Before(washesEnded):
			w.during = append(w.during, ms)
		default:
			w.after++
		}
	}
	return w
}

// scanFinds shows that what is there is found: a request under way in an enclave.
func (w *washing) scanFinds(ctx SpecContext, c *cluster, m *marked, instances []string) {
	GinkgoHelper()
	id, text := m.prompt()
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	var done sync.WaitGroup
	done.Go(func() { // asked again until it was seen: an answer may be faster than a scan
		defer GinkgoRecover()
		for running.Err() == nil {
			_, _, _ = c.tryChat(running, http.DefaultClient, c.base(), text, 200)
		}
	})
	Eventually(ctx, func() bool {
		for _, instance := range instances {
			for _, pid := range childrenOf(c.pids()["parent-"+instance]) {
				ids, err := m.in(pid)
				if os.IsPermission(err) {
					Skip("reading another process's memory takes root")
				}
				Expect(err).NotTo(HaveOccurred())
				if ids[id] {
					return true
				}
			}
		}
		return false
	}, "60s", "10ms").Should(BeTrue(), "the scan finds a request that is under way")
	cancel()
	done.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended[id] = time.Now()
}

// wash washes the instances, each again and again, and checks each record.
func (w *washing) wash(ctx SpecContext, c *cluster, instances []string) {
	GinkgoHelper()
	var (
		mu    sync.Mutex
		group errgroup.Group
	)
	for i, instance := range instances {
		group.Go(func() error {
			defer GinkgoRecover()
			for range (w.washes + len(instances) - 1 - i) / len(instances) {
				one, err := c.washOnce(ctx, instance)
				if err != nil {
					return fmt.Errorf("%s: %w", instance, err)
				}
				mu.Lock()
				w.washed = append(w.washed, one)
				mu.Unlock()
			}
			return nil
		})
	}
	Expect(group.Wait()).To(Succeed())
	ids := map[string]bool{}
	for _, one := range w.washed {
		ids[one.ID] = true
		Expect(one.Passed).To(BeTrue(), one.Reason)
		var names []string
		for _, step := range one.Steps {
			Expect(step.Passed).To(BeTrue(), step.Detail)
			names = append(names, step.Name)
		}
		Expect(names).To(Equal(washSteps))
	}
	Expect(ids).To(HaveLen(w.washes), "each has a row of its own")
}

// washOnce orders a wash, and gives its row in cleanup_validation once it is there.
func (c *cluster) washOnce(ctx context.Context, instance string) (one washed, err error) {
	last := func() (id string) {
		var all []washed
		Expect(json.Unmarshal([]byte(c.mrgc("wash", "show", instance, "--last", "1", "--state", c.env()["MRGC_STATE"], "-o", "json")), &all)).To(Succeed())
		if len(all) > 0 {
			one, id = all[0], all[0].ID
		}
		return id
	}
	before := last()
	c.mrgc("wash", "now", instance, "--admin", c.env()["MRGC_ADMIN_USE1"])
	late := time.Now().Add(2 * time.Minute)
	poll := time.NewTicker(500 * time.Millisecond) // a process each
	defer poll.Stop()
	for last() == before {
		if time.Now().After(late) {
			return one, fmt.Errorf("a wash that was ordered is not recorded after two minutes")
		}
		select {
		case <-ctx.Done():
			return one, ctx.Err()
		case <-poll.C:
		}
	}
	return one, nil
}

var _ = Describe("Washes", Label("washes"), func() {
	It("leave nothing of any request that has ended, and none fails", func(ctx SpecContext) {
		simulated := campaign{name: "simulated engines", instances: 2, requests: 300, washes: 4, lengths: []int{0, 20, 400}, args: []string{"--engine", "sim", "--sim-profile", "h100-llama-8b"}}
		llama := campaign{name: "llama.cpp", instances: 1, requests: 60, washes: 2, lengths: []int{0, 5}}
		long := os.Getenv("MRGC_TEST_LONG") != ""
		if long {
			simulated.instances, simulated.requests, simulated.washes = 4, 10_000, 200
			llama.requests, llama.washes = 200, 6
		}
		var all []washing
		for _, g := range []campaign{simulated, llama} {
			w := g.run(ctx)
			AddReportEntry("washes", w.String())
			Expect(w.residues.found).To(BeEmpty())
			Expect(w.residues.running).To(BeNumerically(">", 0), "markers are found while their requests run")
			Expect(w.failed).To(BeEmpty())
			all = append(all, w)
		}
		if long {
			GinkgoT().Chdir(root())
			Expect(washResult(all).Write()).To(Succeed())
		}
	}, NodeTimeout(40*time.Minute))
})

func (w *washing) requestsEnded() int { return len(w.calm) + len(w.during) + w.after }

func (w *washing) String() string {
	return fmt.Sprintf("%s: %d requests, %d washes in %s: residues %d, markers of requests under way %d in %d scans of %d enclaves, the longest after an end %s",
		w.name, w.requestsEnded(), len(w.washed), w.took.Round(time.Second), len(w.residues.found), w.residues.running, w.residues.scans, len(w.residues.enclaves), w.residues.longest.Round(time.Millisecond))
}

// washResult is what bench/report shows.
func washResult(all []washing) result.Result {
	r := result.Result{Name: "wash", Title: "Washes: what stays of requests, and what they notice", Command: "make test-washes"}
	requests := result.Table{Title: "Requests, and what was found of them in memory", Columns: []string{
		"engine", "requests", "failed", "full washes", "passed", "memories read of enclaves", "markers found while their request ran", "found longest after its end", "residues",
		"p50, no wash", "p99", "p50, washing", "p99",
	}}
	steps := result.Table{Title: "What a wash takes", Columns: []string{"engine", "step", "p50", "p99", "longest"}}
	for _, w := range all {
		ms := func(of []float64, share float64) string { return fmt.Sprintf("%.0f ms", result.Quantile(of, share)) }
		requests.Rows = append(requests.Rows, []string{
			w.name, fmt.Sprint(w.requestsEnded()), fmt.Sprint(len(w.failed)), fmt.Sprint(w.washes), fmt.Sprint(len(w.washed)), fmt.Sprint(len(w.residues.enclaves)),
			fmt.Sprint(w.residues.running), fmt.Sprintf("%.1f s", w.residues.longest.Seconds()), fmt.Sprint(len(w.residues.found)),
			ms(w.calm, 0.5), ms(w.calm, 0.99), ms(w.during, 0.5), ms(w.during, 0.99),
		})
		for i, name := range append(slices.Clone(washSteps), "all") {
			var took []float64
			for _, one := range w.washed {
				if i == len(washSteps) {
					took = append(took, one.took().Seconds()*1e3)
				} else {
					took = append(took, one.Steps[i].Duration.Seconds()*1e3)
				}
			}
			steps.Rows = append(steps.Rows, []string{w.name, name, ms(took, 0.5), ms(took, 0.99), ms(took, 1)})
		}
	}
	first := all[0]
	r.Figures = []result.Figure{
		{Name: "requests that ended", Value: float64(first.requestsEnded()), Unit: "requests", Goal: "≥ 10000"},
		{Name: "full washes that passed", Value: float64(len(first.washed)), Unit: "washes", Goal: "≥ 200"},
		{Name: "residues in enclaves' and parents' memory", Value: float64(len(first.residues.found)), Unit: "residues", Goal: "≤ 0"},
		{Name: "requests that failed", Value: float64(len(first.failed)), Unit: "requests", Goal: "≤ 0"},
	}
	r.Tables = []result.Table{requests, steps}
	r.Notes = []string{fmt.Sprintf("A whole cluster, %d tenants asking without pause, each prompt with a random marker at both ends. Every %s all readable memory of each enclave, those about to end among them, and of each "+
		"parent is read. A residue is a marker in an enclave more than %s after its request has ended, or in a parent at any time; after the last request no enclave holds any. "+
		"The first fifth of the requests is before any wash, and then every instance is washed all the time: requests notice each other, the scan, and all else that runs on the machine.", askers, scanEvery, goneWithin)}
	return r
}
