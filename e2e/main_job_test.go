package e2e_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"
	"github.com/onsi/gomega/gexec"
	"golang.org/x/sync/errgroup"
)

// explainable is how openai_sdk.py says a request's id.
var explainable = regexp.MustCompile(`(?m)^explain (\w+) (\S+)$`)

// explain is what the operator sees of a request.
func (c *cluster) explain(ctx context.Context, id string) string {
	GinkgoHelper()
	command := exec.CommandContext(ctx, "bash", "-c", `source "$1" && exec "$2" explain "$3"`, "bash", c.envFile(), filepath.Join(root(), "bin", "mrgc"), id)
	output, err := command.CombinedOutput()
	Expect(err).NotTo(HaveOccurred(), string(output))
	return string(output)
}

// The specs share one cluster, in its default size, and the last one stops it.
var _ = Describe("make up", Ordered, func() {
	var c *cluster
	BeforeAll(func() { c = startCluster() })

	It("answers the official OpenAI package", func(ctx SpecContext) {
		sdk := filepath.Join(root(), ".tools", "python-e2e")
		Expect(sdk).To(BeADirectory(), "run the tests by `make test`, which installs the package")
		command := exec.CommandContext(ctx, "bash", "-c", `source "$1" && exec python3 openai_sdk.py`, "bash", c.envFile())
		command.Env = []string{"PATH=" + os.Getenv("PATH"), "PYTHONPATH=" + sdk, "HOME=" + GinkgoT().TempDir()}
		session, err := gexec.Start(command, GinkgoWriter, GinkgoWriter)
		Expect(err).NotTo(HaveOccurred())
		Eventually(session, "5m").Should(gexec.Exit())
		Expect(session.ExitCode()).To(BeZero(), "%s", session.Err.Contents())
		Expect(session.Out).To(gbytes.Say("all checks passed"))

		By("finding its requests by the ids that it shows")
		ids := explainable.FindAllStringSubmatch(string(session.Out.Contents()), -1)
		Expect(ids).To(HaveLen(3))
		for _, found := range ids {
			of, id := found[1], found[2]
			Eventually(ctx, func() string { return c.explain(ctx, id) }, "10s").Should(And(
				ContainSubstring("request   "+id+" of dev for "+c.env()["MRGC_MODEL"]), ContainSubstring("served after")), of)
		}
	})

	It("answers the Go client's example", func(ctx SpecContext) {
		example := filepath.Join(GinkgoT().TempDir(), "example")
		output, err := exec.CommandContext(ctx, "go", "build", "-o", example, "../client/example").CombinedOutput()
		Expect(err).NotTo(HaveOccurred(), string(output))
		command := exec.CommandContext(ctx, "bash", "-c", `source "$1" && exec "$2" "Say hello."`, "bash", c.envFile(), example)
		output, err = command.Output()
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.TrimSpace(string(output))).NotTo(BeEmpty())
	})

	It("sends nothing to an engine before its host has vouched for the guard", func() {
		for name := range c.pids() {
			if !strings.HasPrefix(name, "enclave-") {
				continue
			}
			log, err := os.ReadFile(filepath.Join(c.stateDir, "logs", name+".log"))
			Expect(err).NotTo(HaveOccurred())
			Expect(string(log)).NotTo(ContainSubstring("NOT TRUSTED"), name)
			if name == "enclave-use1-0" {
				Expect(string(log)).To(ContainSubstring("the engine's host is trusted"), name)
			}
		}
	})

	It("tells whoever does not seal how to", func(ctx SpecContext) {
		for region, url := range c.envoys() {
			status, body := c.chat(ctx, &http.Client{Transport: &http.Transport{TLSClientConfig: c.tls()}}, url, "plain text")
			Expect(status).To(Equal(http.StatusBadRequest), region)
			Expect(body).To(And(ContainSubstring("request_not_sealed"), ContainSubstring("mrgc connect")), region)
		}
		Expect(c.envoys()).To(HaveLen(3))
	})

	It("has every Envoy acknowledge what it was sent, and shows it", func(ctx SpecContext) {
		for _, name := range []string{"MRGC_ADMIN_USE1", "MRGC_ADMIN_USE2", "MRGC_ADMIN_USW2"} {
			for page, want := range map[string]string{"/envoys": `"synced": true`, "/fleet": `"use2-1"`, "/weights": `"weight"`, "/metrics": "mrgc_in_flight{"} {
				// Weights change while there is load, and an acknowledgement may be on its way.
				Eventually(ctx, func() string { return get(ctx, c.env()[name]+page) }, "30s").Should(ContainSubstring(want), name+page)
			}
		}
	})

	It("keeps prompts out of the parent, of Envoy and of the router", func(ctx SpecContext) {
		marker := "marker" + rand.Text()
		c.sendMarker(ctx, marker, 100)
		pids := c.pids()
		for name, pid := range pids {
			if strings.HasPrefix(name, "parent-") || strings.HasPrefix(name, "envoy-") || strings.HasPrefix(name, "router-") {
				found, scanned, err := scanMemory(pid, []byte(marker))
				if errors.Is(err, fs.ErrPermission) {
					Skip("reading another process's memory takes root")
				}
				Expect(err).NotTo(HaveOccurred(), name)
				Expect(scanned).To(BeNumerically(">", 4<<20), "%s: the scan reads the heap", name)
				Expect(found).To(BeFalse(), "%s holds the marker", name)
			}
		}
		Expect(c.engineHolds(marker)).To(BeTrue(), "the same scan finds the marker where it is known to be")

		Expect(filepath.WalkDir(c.stateDir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			content, err := os.ReadFile(path)
			Expect(bytes.Contains(content, []byte(marker))).To(BeFalse(), path)
			return err
		})).To(Succeed())
	})

	It("restarts a child that dies, names its log, and goes on answering", func(ctx SpecContext) {
		before := c.pids()["parent-use1-0"]
		Expect(syscall.Kill(before, syscall.SIGKILL)).To(Succeed())
		Eventually(c.session).Should(gbytes.Say(`parent-use1-0 stopped .*parent-use1-0\.log`))
		Eventually(func() int { return c.pids()["parent-use1-0"] }, "20s").Should(And(Not(Equal(before)), Not(BeZero())))
		status, body := c.chat(ctx, http.DefaultClient, c.base(), "Say hello.")
		Expect(status).To(Equal(http.StatusOK), body)
	})

	It("leaves nothing behind after Ctrl-C", func() {
		pids := c.pids()
		Expect(len(pids)).To(BeNumerically(">=", 26))
		runDir, err := os.Readlink(filepath.Join(c.stateDir, "run"))
		Expect(err).NotTo(HaveOccurred())
		c.session.Interrupt()
		Eventually(c.session, stopTimeout).Should(gexec.Exit(0))
		for name, pid := range pids {
			Expect(alive(pid)).To(BeFalse(), name)
		}
		Expect(runDir).NotTo(BeADirectory())
		Expect(c.envFile()).NotTo(BeAnExistingFile())
	})
})

// chat sends one chat completion.
func (c *cluster) chat(ctx context.Context, httpClient *http.Client, base, text string) (status int, body string) {
	GinkgoHelper()
	status, body, err := c.tryChat(ctx, httpClient, base, text, 1)
	Expect(err).NotTo(HaveOccurred())
	return status, body
}

func (c *cluster) tryChat(ctx context.Context, httpClient *http.Client, base, text string, maxTokens int) (status int, body string, err error) {
	payload, err := json.Marshal(map[string]any{
		"model": c.env()["MRGC_MODEL"], "max_tokens": maxTokens,
		"messages": []map[string]string{{"role": "user", "content": text}},
	})
	if err != nil {
		return 0, "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", bytes.NewReader(payload))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Authorization", "Bearer "+c.env()["OPENAI_API_KEY"])
	req.Header.Set("Content-Type", "application/json")
	resp, err := httpClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(content), err
}

// sendMarker sends requests that carry the marker, four at a time.
func (c *cluster) sendMarker(ctx context.Context, marker string, requests int) {
	GinkgoHelper()
	var group errgroup.Group
	group.SetLimit(4)
	for i := range requests {
		group.Go(func() error {
			status, body, err := c.tryChat(ctx, http.DefaultClient, c.base(), fmt.Sprintf("%d %s", i, marker), 1)
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("status %d: %s", status, body)
			}
			return err
		})
	}
	Expect(group.Wait()).To(Succeed())
}

func get(ctx context.Context, url string) string {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	Expect(err).NotTo(HaveOccurred())
	resp, err := http.DefaultClient.Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer resp.Body.Close()
	Expect(resp.StatusCode).To(Equal(http.StatusOK), url)
	content, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return string(content)
}
