package sim_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/engine"
	"github.com/mrgc/mrgc/engine/sim"
	"github.com/mrgc/mrgc/internal/engineload"
	"github.com/mrgc/mrgc/internal/fleet"
)

func TestSim(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "engine/sim")
}

// start serves an engine over HTTP.
func start(cfg sim.Config) *httptest.Server {
	GinkgoHelper()
	server, _ := startEngine(cfg)
	return server
}

func startEngine(cfg sim.Config) (*httptest.Server, *sim.Engine) {
	GinkgoHelper()
	before := gleak.Goroutines()
	engine, err := sim.New(cfg)
	Expect(err).NotTo(HaveOccurred())
	server := httptest.NewServer(engine)
	DeferCleanup(func() {
		server.CloseClientConnections()
		server.Close()
		http.DefaultClient.CloseIdleConnections()
		Eventually(gleak.Goroutines).WithTimeout(5 * time.Second).ShouldNot(gleak.HaveLeaked(before))
	})
	return server, engine
}

func post(ctx context.Context, server *httptest.Server, path, body string) *http.Response {
	GinkgoHelper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+path, strings.NewReader(body))
	Expect(err).NotTo(HaveOccurred())
	resp, err := server.Client().Do(req)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(resp.Body.Close)
	return resp
}

// decode reads an answer in one piece, without its time.
func decode(resp *http.Response) map[string]any {
	GinkgoHelper()
	Expect(resp).To(HaveHTTPStatus(http.StatusOK))
	var answer map[string]any
	Expect(json.NewDecoder(resp.Body).Decode(&answer)).To(Succeed())
	delete(answer, "created")
	return answer
}

func loadOf(server *httptest.Server) func() (fleet.Load, error) {
	return func() (fleet.Load, error) {
		resp, err := server.Client().Get(server.URL + "/metrics")
		if err != nil {
			return fleet.Load{}, err
		}
		defer func() { _ = resp.Body.Close() }()
		metrics, err := engineload.Read(resp.Body)
		return fleet.Load{Running: metrics.Running, Queued: metrics.Queued}, err
	}
}

var _ = Describe("The simulator", func() {
	cfg := sim.Config{Model: "sim", Slots: 2}

	It("answers a chat, the same way each time", func(ctx SpecContext) {
		server := start(cfg)
		const body = `{"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":3}`
		first := decode(post(ctx, server, "/v1/chat/completions", body))
		Expect(decode(post(ctx, server, "/v1/chat/completions", body))).To(Equal(first))
		Expect(first).To(HaveKeyWithValue("object", "chat.completion"))
		Expect(first).To(HaveKeyWithValue("usage", Equal(map[string]any{"prompt_tokens": 11.0, "completion_tokens": 3.0, "total_tokens": 14.0})))
		choice := first["choices"].([]any)[0].(map[string]any)
		Expect(choice).To(HaveKeyWithValue("finish_reason", "length"))
		Expect(strings.Fields(choice["message"].(map[string]any)["content"].(string))).To(HaveLen(3))
	})

	It("completes text", func(ctx SpecContext) {
		answer := decode(post(ctx, start(cfg), "/v1/completions", `{"prompt":"x"}`))
		Expect(answer).To(HaveKeyWithValue("object", "text_completion"))
		choice := answer["choices"].([]any)[0].(map[string]any)
		Expect(choice).To(HaveKeyWithValue("finish_reason", "stop"))
		Expect(strings.Fields(choice["text"].(string))).To(HaveLen(16))
	})

	It("keeps to JSON and calls a tool where that is asked for", func(ctx SpecContext) {
		server := start(cfg)
		answer := decode(post(ctx, server, "/v1/chat/completions", `{"response_format":{"type":"json_object"}}`))
		content := answer["choices"].([]any)[0].(map[string]any)["message"].(map[string]any)["content"].(string)
		Expect(json.Valid([]byte(content))).To(BeTrue())
		answer = decode(post(ctx, server, "/v1/chat/completions", `{"tools":[{"type":"function","function":{"name":"weather"}}],"tool_choice":"required"}`))
		choice := answer["choices"].([]any)[0].(map[string]any)
		Expect(choice).To(HaveKeyWithValue("finish_reason", "tool_calls"))
		call := choice["message"].(map[string]any)["tool_calls"].([]any)[0].(map[string]any)
		Expect(call).To(HaveKeyWithValue("function", Equal(map[string]any{"name": "weather", "arguments": "{}"})))
	})

	It("streams token by token, as it generates", func(ctx SpecContext) {
		server := start(sim.Config{Model: "sim", Slots: 1, PerToken: time.Hour})
		caller, leave := context.WithCancel(ctx)
		defer leave()
		resp := post(caller, server, "/v1/chat/completions", `{"stream":true,"max_tokens":2}`)
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		Expect(err).NotTo(HaveOccurred())
		Expect(line).To(And(HavePrefix("data: {"), ContainSubstring(`"delta":{"content":`)))
		Expect(loadOf(server)()).To(Equal(fleet.Load{Running: 1}))
		leave()
		Eventually(loadOf(server)).Should(Equal(fleet.Load{}), "generating stops when the caller goes")
	})

	It("ends a stream as OpenAI does, with usage if wanted", func(ctx SpecContext) {
		body, err := io.ReadAll(post(ctx, start(cfg), "/v1/completions", `{"stream":true,"max_tokens":2,"stream_options":{"include_usage":true}}`).Body)
		Expect(err).NotTo(HaveOccurred())
		events := strings.Split(strings.TrimSuffix(string(body), "\n\n"), "\n\n")
		Expect(events).To(HaveExactElements(ContainSubstring(`"text":`), ContainSubstring(`"text":`), ContainSubstring(`"finish_reason":"length"`),
			And(ContainSubstring(`"choices":[]`), ContainSubstring(`"completion_tokens":2`)), Equal("data: [DONE]")))
	})

	It("runs as many as it has slots and queues the rest", func(ctx SpecContext) {
		server := start(sim.Config{Model: "sim", Slots: 2, FirstToken: time.Hour})
		callers, leave := context.WithCancel(ctx)
		defer leave()
		for range 5 {
			go func() {
				req, _ := http.NewRequestWithContext(callers, http.MethodPost, server.URL+"/v1/completions", strings.NewReader("{}"))
				if resp, err := server.Client().Do(req); err == nil {
					_ = resp.Body.Close()
				}
			}()
		}
		Eventually(loadOf(server)).Should(Equal(fleet.Load{Running: 2, Queued: 3}))
		leave()
		Eventually(loadOf(server)).Should(Equal(fleet.Load{}))
	})

	It("takes the time that it was told to", func(ctx SpecContext) {
		began := time.Now()
		decode(post(ctx, start(sim.Config{Model: "sim", Slots: 1, FirstToken: 50 * time.Millisecond, PerToken: 10 * time.Millisecond}), "/v1/completions", `{"max_tokens":6}`))
		Expect(time.Since(began)).To(BeNumerically(">=", 100*time.Millisecond))
	})

	DescribeTable("refuses", func(ctx SpecContext, body string, status int) {
		Expect(post(ctx, start(cfg), "/v1/completions", body)).To(HaveHTTPStatus(status))
	},
		Entry("no JSON", "hello", http.StatusBadRequest),
		Entry("another model", `{"model":"other"}`, http.StatusNotFound),
		Entry("too long an answer", `{"max_tokens":1048577}`, http.StatusBadRequest),
		Entry("a salt with a slash, as vLLM does", `{"max_tokens":1,"cache_salt":"a/b"}`, http.StatusBadRequest),
		Entry("too long a salt", `{"max_tokens":1,"cache_salt":"`+strings.Repeat("a", 129)+`"}`, http.StatusBadRequest),
	)

	It("runs on a socket of its own user and removes it", func(ctx SpecContext) {
		dir, err := os.MkdirTemp("", "mrgc")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(os.RemoveAll, dir)
		socket := filepath.Join(dir, "e.sock")
		Expect(os.WriteFile(socket, nil, 0o600)).To(Succeed(), "left by another run")
		ctx2, end := context.WithCancel(ctx)
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() {
			ended <- engine.Run(ctx2, engine.Config{Kind: engine.Sim, Socket: socket, Model: "sim"}, func() { close(ready) })
		}()
		Eventually(ready).Should(BeClosed())
		info, err := os.Stat(socket)
		Expect(err).NotTo(HaveOccurred())
		Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)))
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
		for _, path := range []string{"/health", "/v1/models"} {
			resp, err := client.Get("http://engine" + path)
			Expect(err).NotTo(HaveOccurred())
			Expect(resp).To(HaveHTTPStatus(http.StatusOK))
			Expect(resp.Body.Close()).To(Succeed())
		}
		end()
		Eventually(ended).Should(Receive(BeNil()))
		Expect(socket).NotTo(BeAnExistingFile())
	})

	It("is told what it cannot run", func(ctx SpecContext) {
		Expect(engine.Run(ctx, engine.Config{Kind: "other"}, nil)).To(MatchError(`engine kind "other": it is either "llama" or "sim"`))
		Expect(sim.Run(ctx, sim.Config{Model: "x"}, nil)).To(MatchError(ContainSubstring("at least one slot")))
		Expect(sim.Run(ctx, sim.Config{Model: "x", Slots: 1, Socket: "/no/such/folder/e.sock"}, nil)).To(MatchError(ContainSubstring("no such file")))
		Expect(engine.Run(ctx, engine.Config{Kind: engine.Sim, Model: "x", Profile: "tpu"}, nil)).To(MatchError(ContainSubstring("there are h100-llama-8b")))
		Expect(engine.Run(ctx, engine.Config{Kind: engine.Sim, Model: "x", KVBlocks: 1}, nil)).To(MatchError(ContainSubstring("without a profile")))
	})
})
