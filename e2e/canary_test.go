package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/routing"
)

// canary runs `mrgc canary`, as a person does after source .mrgc/env.
func (c *cluster) canary(ctx context.Context, args ...string) string {
	GinkgoHelper()
	command := exec.CommandContext(ctx, "bash", append([]string{"-c", `source "$1" && shift && exec "$@"`, "bash", c.envFile(), filepath.Join(root(), "bin", "mrgc"), "canary"}, args...)...)
	output, err := command.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), string(output))
	return string(output)
}

// split is how the cluster's mrgc.yaml divides its model's requests.
func (c *cluster) split() routing.Split {
	GinkgoHelper()
	cluster, err := config.Load(filepath.Join(c.stateDir, "mrgc.yaml"))
	Expect(err).NotTo(HaveOccurred())
	return cluster.Splits()[c.env()["MRGC_MODEL"]]
}

func weightOf(split routing.Split, version string) int {
	for _, v := range split {
		if v.Name == version {
			return v.Weight
		}
	}
	return -1
}

// streams are tenants who ask for streams, each a conversation of its own, one after
// the other until stop is called.
type streams struct {
	stop   func() // and waits
	asked  atomic.Int64
	failed atomic.Int64 // that were answered with an error, or not to the end
	cut    atomic.Int64 // that got no answer at all from the cluster
}

func (c *cluster) askForStreams(clients int) *streams {
	GinkgoHelper()
	env := c.env()
	ctx, cancel := context.WithCancel(context.Background())
	s := &streams{}
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for ctx.Err() == nil {
				status, body, err := askForStream(ctx, env, fmt.Sprintf("Question %d: why is that so?", s.asked.Add(1)))
				switch {
				case ctx.Err() != nil:
				case err != nil:
					s.cut.Add(1)
				case status != http.StatusOK || !strings.Contains(body, "data: [DONE]"):
					s.failed.Add(1)
				}
			}
		})
	}
	s.stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	DeferCleanup(s.stop)
	return s
}

func askForStream(ctx context.Context, env map[string]string, text string) (status int, body string, err error) {
	payload, err := json.Marshal(map[string]any{
		"model": env["MRGC_MODEL"], "max_tokens": 16, "stream": true, "messages": []map[string]string{{"role": "user", "content": text}},
	})
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, env["OPENAI_BASE_URL"]+"/chat/completions", bytes.NewReader(payload))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+env["OPENAI_API_KEY"])
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(content), err
}

var _ = Describe("A canary", func() {
	up := func(args ...string) *cluster {
		GinkgoHelper()
		return startCluster(append([]string{"--engine", "sim", "--sim-profile", "a100", "--ask=false"}, args...)...)
	}

	It("is rolled back by itself when it is slower, and when it fails, once, and with the reason", func(ctx SpecContext) {
		c := up("--regions", "use1", "--instances", "3", "--versions", "1,2,3", "--sim-slow", "use1-1=1.5", "--sim-fail", "use1-2=0.2")
		model := c.env()["MRGC_MODEL"]
		c.canary(ctx, "set", model, "2", "30%")
		c.canary(ctx, "set", model, "3", "30%")
		began := time.Now()
		s := c.askForStreams(8)
		rolledBack := map[string]time.Duration{}
		Eventually(ctx, func() map[string]time.Duration {
			for _, version := range []string{"2", "3"} {
				if _, already := rolledBack[version]; !already && weightOf(c.split(), version) == 0 {
					rolledBack[version] = since(began)
				}
			}
			return rolledBack
		}, "4m", "100ms").Should(HaveLen(2))
		AddReportEntry("canary", fmt.Sprintf("slower by half: rolled back after %s; a fifth fails: after %s; of which the warm-up is 30s", rolledBack["2"], rolledBack["3"]))
		Expect(c.split()).To(Equal(routing.Split{{Name: "1", Weight: 1000}, {Name: "2"}, {Name: "3"}}))

		By("everybody keeping to it")
		Eventually(ctx, func() string { return get(ctx, c.env()["MRGC_ADMIN_USE1"]+"/weights") }, "20s").ShouldNot(ContainSubstring("use1-1"))
		failed, asked := s.failed.Load(), s.asked.Load()
		Eventually(ctx, s.asked.Load, "60s").Should(BeNumerically(">", asked+100))
		s.stop()
		Expect(s.cut.Load()).To(BeZero(), "no request was dropped on the way")
		Expect(s.failed.Load()-failed).To(BeNumerically("<=", 8), "what was under way may have failed; nothing since")

		By("the record and the status saying why")
		record, err := os.ReadFile(filepath.Join(c.stateDir, "mrgc.yaml.rollbacks"))
		Expect(err).NotTo(HaveOccurred())
		lines := strings.Split(strings.TrimSpace(string(record)), "\n")
		Expect(lines).To(ConsistOf(
			MatchRegexp(`"version":"2".*"reason":"time_to_first_token|"version":"2".*"reason":"time_per_token`),
			MatchRegexp(`"version":"3".*"reason":"error_rate: worse than 1 by`),
		), "each once, though two routers judge")
		Expect(c.canary(ctx, "status")).To(And(MatchRegexp(`2 +0 %, withdrawn`), ContainSubstring("rolled back"), ContainSubstring("error_rate")))
	})

	It("that is alike is left alone", func(ctx SpecContext) {
		c := up("--regions", "use1,use2", "--instances", "2", "--versions", "1,2")
		model := c.env()["MRGC_MODEL"]
		c.canary(ctx, "set", model, "2", "50%")
		s := c.askForStreams(8)
		compared := func(admin string) int {
			var page struct{ Trials []struct{ Compared int } }
			Expect(json.Unmarshal([]byte(get(ctx, c.env()[admin]+"/canary")), &page)).To(Succeed())
			if len(page.Trials) == 0 { // it has not been seen yet
				return 0
			}
			return page.Trials[0].Compared
		}
		Eventually(ctx, func() int { return compared("MRGC_ADMIN_USE1") }, "4m", "500ms").Should(BeNumerically(">", 400), "more than what it took to find the others out")
		s.stop()
		Eventually(ctx, func() int { return compared("MRGC_ADMIN_USE1") - compared("MRGC_ADMIN_USE2_1") }, "20s").Should(BeZero(), "what one region has seen, all judge by")
		Expect(weightOf(c.split(), "2")).To(Equal(500))
		Expect(filepath.Join(c.stateDir, "mrgc.yaml.rollbacks")).NotTo(BeAnExistingFile())
		Expect(s.failed.Load() + s.cut.Load()).To(BeZero())
		Expect(c.canary(ctx, "status")).To(And(MatchRegexp(`2 +50 %`), ContainSubstring("no worse")))
	})
})
