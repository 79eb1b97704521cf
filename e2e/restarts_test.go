package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/client"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/local"
)

// restartSteps are what a full wash records that restarts the engine.
var restartSteps = []string{
	"await_turn", "check_model", "plant_canary", "keep_turn", "step_aside", "clear_gpu", "restart_enclave", "check_health", "check_canary", "step_back",
}

// washedInTurn is a wash as mrgc wash show prints it, which may not have ended.
type washedInTurn struct {
	washed
	Open      string
	StartedAt time.Time `json:"started_at"`
}

// during is when it was at some steps, the first and the last one included.
func (w *washedInTurn) during(first, last string) (from, to time.Time) {
	at := w.StartedAt
	for _, step := range w.Steps {
		if step.Name == first {
			from = at
		}
		if at = at.Add(step.Duration); step.Name == last {
			to = at
		}
	}
	return from, to
}

// washesInTurn are an instance's, the newest first.
func (c *cluster) washesInTurn(instance string) (all []washedInTurn) {
	GinkgoHelper()
	Expect(json.Unmarshal([]byte(c.mrgc("wash", "show", instance, "--last", "100", "--state", c.env()["MRGC_STATE"], "-o", "json")), &all)).To(Succeed())
	return all
}

// kind is one of tenants' programs.
type kind struct {
	name   string
	sealed int // recipients of a request; 0: as many as usual
	stream bool
}

// keepAsking has a program of a tenant's ask one thing after the other until ctx ends.
func (c *cluster) keepAsking(ctx context.Context, k kind, r *requests) {
	GinkgoHelper()
	sealing := c.sealing(func(config *client.Config) { config.Recipients = k.sealed })
	model, key := c.env()["MRGC_MODEL"], c.env()["OPENAI_API_KEY"]
	r.done.Go(func() {
		pause := time.NewTicker(20 * time.Millisecond)
		defer pause.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			began := time.Now()
			status, body, err := askWith(&http.Client{Transport: sealing}, model, key, fmt.Sprintf("%s asks for the %dth time", k.name, n), k.stream)
			r.note(began, status, k.name+": "+body, err)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	})
}

// askWith reads an answer to its end, which a stream has to have.
func askWith(with *http.Client, model, key, text string, stream bool) (status int, body string, err error) {
	asked, err := json.Marshal(map[string]any{
		"model": model, "max_tokens": 8, "stream": stream, "messages": []map[string]string{{"role": "user", "content": text}},
	})
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequest(http.MethodPost, "https://mrgc/v1/chat/completions", bytes.NewReader(asked)) //nolint:noctx // each is to end by itself
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	resp, err := with.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusOK && stream && !strings.Contains(string(content), "[DONE]") {
		err = fmt.Errorf("the stream has no end: %s", content)
	}
	return resp.StatusCode, string(content), err
}

// engines are the processes that supervisors run, by the supervisor's name.
func (c *cluster) engines() map[string][]int {
	GinkgoHelper()
	engines := map[string][]int{}
	for name, pid := range c.pids() {
		if strings.HasPrefix(name, "engine-") {
			engines[name] = childrenOf(pid)
		}
	}
	return engines
}

var _ = Describe("Full washes that restart the engine", Label("washes"), func() {
	DescribeTable("are of one instance after the other when all are ordered at once, and no request fails", func(ctx SpecContext, store string) {
		if missing := dynamodblocal.Missing(); store == local.StoreDynamoDB && missing != "" {
			Skip(missing)
		}
		for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} { // of mrgc wash show; DynamoDB Local takes any
			GinkgoT().Setenv(name, "mrgcup")
		}
		c := startCluster("--regions", "use1", "--instances", "3", "--routers", "1", "--wash", "--restart-engine", "--engine", "sim",
			"--sim-profile", "h100-llama-8b", "--store", store, "--ask=false")
		configured, err := os.ReadFile(filepath.Join(c.stateDir, "mrgc.yaml"))
		Expect(err).NotTo(HaveOccurred())
		if !strings.Contains(string(configured), "restart_engine: true") {
			c.configure(func(text string) string { return text + "wash: {restart_engine: true}\n" })
		}
		before := c.engines()
		Expect(before).To(HaveLen(3))
		Expect(before).To(HaveEach(HaveLen(1)))

		asking, stop := context.WithCancel(ctx)
		r := &requests{cancel: stop}
		DeferCleanup(func() { stop(); r.done.Wait() })
		for _, k := range []kind{
			{name: "whole"}, {name: "streamed", stream: true}, {name: "whole, sealed to one", sealed: 1}, {name: "streamed, sealed to one", sealed: 1, stream: true},
		} {
			c.keepAsking(asking, k, r)
		}
		Eventually(ctx, r.count, "60s").Should(BeNumerically(">", 200))

		instances := []string{"use1-0", "use1-1", "use1-2"}
		began := time.Now()
		var ordered sync.WaitGroup
		for _, instance := range instances {
			ordered.Go(func() {
				defer GinkgoRecover()
				c.mrgc("wash", "now", instance, "--admin", c.env()["MRGC_ADMIN_USE1"])
			})
		}
		ordered.Wait()
		seen := map[string]bool{}
		var washes []washedInTurn
		Eventually(ctx, func() bool {
			for _, part := range []string{"washing: ", "waits: "} {
				if strings.Contains(c.mrgc("status", "--admin", c.env()["MRGC_ADMIN_USE1"])+c.mrgc("wash", "show", "use1-0", "--state", c.env()["MRGC_STATE"])+
					c.mrgc("wash", "show", "use1-1", "--state", c.env()["MRGC_STATE"]), part) {
					seen[part] = true
				}
			}
			washes = nil
			for _, instance := range instances {
				washes = append(washes, c.washesInTurn(instance)...)
			}
			return len(washes) == 3 && !slices.ContainsFunc(washes, func(w washedInTurn) bool { return w.Open != "" })
		}, "2m", "500ms").Should(BeTrue())
		ended := time.Now()
		Eventually(ctx, func() string { return c.mrgc("status", "--admin", c.env()["MRGC_ADMIN_USE1"]) }, "20s", "200ms").ShouldNot(ContainSubstring("washing"))
		enough := r.count() + 100
		Eventually(ctx, r.count, "30s").Should(BeNumerically(">", enough))
		stop()
		r.done.Wait()

		By("looking at the washes")
		Expect(seen).To(HaveLen(2), "who waits and who is washed is shown")
		slices.SortFunc(washes, func(a, b washedInTurn) int {
			from, _ := a.during("step_aside", "step_back")
			other, _ := b.during("step_aside", "step_back")
			return from.Compare(other)
		})
		var last time.Time
		for _, w := range washes {
			Expect(w.Passed).To(BeTrue(), w.Reason)
			var names []string
			for _, step := range w.Steps {
				names = append(names, step.Name)
				AddReportEntry("wash", fmt.Sprintf("%s: %s: %s: %s", w.ID, step.Name, step.Duration.Round(time.Millisecond), step.Detail))
			}
			Expect(names).To(Equal(restartSteps))
			from, to := w.during("step_aside", "step_back")
			Expect(from).To(BeTemporally(">=", last), "one steps aside when the one before is back")
			last = to
			AddReportEntry("wash", fmt.Sprintf("%s was out of traffic for %s", w.ID, to.Sub(from).Round(time.Millisecond)))
		}

		By("looking at the engines")
		after := c.engines()
		for name, was := range before {
			Expect(after[name]).To(HaveLen(1), name)
			Expect(after[name]).NotTo(Equal(was), "%s has another process", name)
			Expect(alive(was[0])).To(BeFalse(), "%s's old one has gone", name)
		}

		By("looking at the requests")
		var calm, washing []time.Duration
		for _, one := range r.sent {
			Expect(one.failure).To(BeEmpty())
			switch {
			case one.ended.Before(began):
				calm = append(calm, one.took)
			case one.ended.Before(ended):
				washing = append(washing, one.took)
			}
		}
		Expect(len(washing)).To(BeNumerically(">", 100))
		AddReportEntry("wash", fmt.Sprintf("%d answers; without a wash p50 %s, p99 %s, slowest %s (%d); while washing p50 %s, p99 %s, slowest %s (%d)", len(r.sent),
			percentile(calm, 0.5), percentile(calm, 0.99), percentile(calm, 1), len(calm),
			percentile(washing, 0.5), percentile(washing, 0.99), percentile(washing, 1), len(washing)))
	},
		Entry("by leases in SQLite", NodeTimeout(6*time.Minute), local.StoreSQLite),
		Entry("by leases in DynamoDB", NodeTimeout(6*time.Minute), local.StoreDynamoDB),
	)
})
