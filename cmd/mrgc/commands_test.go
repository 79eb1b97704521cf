package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/credential"
)

const example = "../../mrgc.example.yaml"

var _ = Describe("Help", func() {
	DescribeTable("says what a command takes", func(command string, says ...string) {
		got := mrgc(append(strings.Fields(command), "--help")...)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stderr).To(BeEmpty())
		for _, text := range says {
			Expect(got.stdout).To(ContainSubstring(text))
		}
	},
		Entry(nil, "", "Use:", "Operate:", "Roles", "up", "connect", "config", "tenants", "canary", "parts", "router", "engine"),
		Entry(nil, "up", "--regions", "--instances", "--routers", "--engine ", "--model ", "--engine-url", "--model-name", "--port",
			"--policy", "--sim-profile", "h100-llama-8b or a100-llama-8b", "--sim-slots", "--sim-kv-blocks", "--sim-slow", "--sim-fail", "--state-dir", "--tools-dir", "--ask"),
		Entry(nil, "connect", "--listen", "--endpoint", "--ca", "--releases", "--min-version", "--require-mode", "--allow-region",
			"--recipients", "--trust-development-root", "IN PLACE OF AWS's"),
		Entry(nil, "config", "check"),
		Entry(nil, "config check", "check [FILE]"),
		Entry(nil, "tenants", "new", "export"),
		Entry(nil, "tenants new", "NAME", "standard error"),
		Entry(nil, "canary", "set", "status", "promote", "abort", "--config", "--output"),
		Entry(nil, "canary set", "MODEL VERSION WEIGHT"),
		Entry(nil, "parts", "fetch"),
		Entry(nil, "parts fetch", "--tools-dir"),
		Entry(nil, "router", "--config", "--store", "--identity", "--grpc-listen", "--http-listen", "--admin-listen",
			"--tenant-address", "--health-address", "--peer", "--tenant-cert", "--tenant-key", "MRGC_IDENTITY_TOKEN"),
		Entry(nil, "engine", "serve", "guard"),
		Entry(nil, "engine serve", "--kind", "--socket", "--model-name", "--model ", "--python-path", "--slots", "--context-tokens",
			"--threads", "--first-token", "--per-token", "--profile", "--kv-blocks", "--speed", "--slowness", "--fail-share", "--listen"),
		Entry(nil, "engine guard", "--listen", "--upstream", "--identity"),
	)
})

var _ = Describe("A command", func() {
	DescribeTable("wants", func(command, reason string) {
		got := mrgc(strings.Fields(command)...)
		Expect(got.err).To(MatchError(ContainSubstring(reason)))
		Expect(got.stdout).To(BeEmpty())
	},
		Entry("connect: endpoints and releases", "connect", `required flag(s) "endpoint", "releases" not set`),
		Entry("connect: releases", "connect --endpoint https://x", `required flag(s) "releases" not set`),
		Entry("router: what it cannot do without", "router", `required flag(s) "identity", "store", "tenant-cert", "tenant-key" not set`),
		Entry("engine serve: a name", "engine serve --socket x", `required flag(s) "model-name" not set`),
		Entry("engine serve: somewhere to listen", "engine serve --model-name x", "at least one of the flags in the group [socket listen] is required"),
		Entry("engine serve: one place to listen", "engine serve --model-name x --socket x --listen x", "none of the others can be"),
		Entry("engine guard: an engine and an identity", "engine guard", `required flag(s) "identity", "upstream" not set`),
		Entry("tenants new: a name", "tenants new", "accepts 1 arg(s), received 0"),
		Entry("canary set: three things", "canary set m 2", "accepts 3 arg(s), received 2"),
		Entry("config check: one file", "config check a b", "accepts at most 1 arg(s), received 2"),
		Entry("up: no arguments", "up use1", `unknown command "use1"`),
		Entry("up: a profile that exists", "up --engine sim --sim-profile v100", "there are h100-llama-8b and a100-llama-8b"),
		Entry("up: regions that exist", "up --regions euw1", "--regions euw1"),
		Entry("to be one", "serve", `unknown command "serve"`),
		Entry("flags that exist", "up --fast", "unknown flag: --fast"),
	)
})

var _ = Describe("mrgc config check", func() {
	It("accepts the example, and says what is in it", func() {
		got := mrgc("config", "check", example)
		Expect(got.err).NotTo(HaveOccurred())
		Expect(got.stdout).To(Equal(example + " is valid: 3 regions, 1 models, 1 tenants\n"))
	})

	It("says everything that is wrong", func() {
		content, err := os.ReadFile(example)
		Expect(err).NotTo(HaveOccurred())
		broken := strings.NewReplacer("message_timeout: 50ms", "message_timeout: 0s", "tenant_port: 443", "tenant_port: 8080").Replace(string(content))
		path := filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
		Expect(os.WriteFile(path, []byte(broken), 0o600)).To(Succeed())
		got := mrgc("config", "check", path)
		Expect(got.err).To(MatchError(And(ContainSubstring("message_timeout"), ContainSubstring("health_port"))))
		Expect(got.stdout).To(BeEmpty())
	})

	It("names a file that is not there", func() {
		Expect(mrgc("config", "check", "/nonexistent/mrgc.yaml").err).To(MatchError(ContainSubstring("/nonexistent/mrgc.yaml")))
	})
})

var _ = Describe("mrgc tenants new", func() {
	It("prints the key apart from what the cluster stores", func() {
		got := mrgc("tenants", "new", "umbra")
		Expect(got.err).NotTo(HaveOccurred())
		key, err := credential.Parse(strings.TrimSuffix(got.stderr, "\n"))
		Expect(err).NotTo(HaveOccurred())
		Expect(key.Tenant()).To(Equal("umbra"))
		for _, hidden := range []string{key.Text()[len("mrgc-umbra-"):], string(key.EdgeToken()), string(key.EnclaveToken())} {
			Expect(got.stdout).NotTo(ContainSubstring(hidden))
		}

		content, err := os.ReadFile(example)
		Expect(err).NotTo(HaveOccurred())
		c, err := config.Parse("mrgc.yaml", []byte(strings.Replace(string(content), "\ntenants:\n", "\ntenants:\n"+got.stdout, 1)))
		Expect(err).NotTo(HaveOccurred())
		Expect(c.Tenants[0].Name).To(Equal("umbra"))
		Expect(c.Tenants[0].EdgeTokenSHA256).To(Equal([]credential.Digest{credential.DigestOf(key.EdgeToken())}))
		Expect(c.Tenants[0].EnclaveTokenSHA256).To(Equal([]credential.Digest{credential.DigestOf(key.EnclaveToken())}))
	})

	It("makes another key each time", func() {
		Expect(mrgc("tenants", "new", "acme").stderr).NotTo(Equal(mrgc("tenants", "new", "acme").stderr))
	})

	It("refuses a name that is none", func() {
		got := mrgc("tenants", "new", "Acme Inc")
		Expect(got.err).To(MatchError(ContainSubstring("tenant name")))
		Expect(got.stdout + got.stderr).To(BeEmpty())
	})
})

var _ = Describe("mrgc tenants export", func() {
	It("prints the digests of the enclave tokens, as the enclave reads them", func() {
		got := mrgc("tenants", "export", "--config", example)
		Expect(got.err).NotTo(HaveOccurred())
		var exported credential.Set
		Expect(json.Unmarshal([]byte(got.stdout), &exported)).To(Succeed())
		c, err := config.Load(example)
		Expect(err).NotTo(HaveOccurred())
		Expect(exported).To(Equal(c.EnclaveTokens()))
		Expect(exported["acme"]).NotTo(BeEmpty())
		Expect(got.stdout).NotTo(ContainSubstring(c.Tenants[0].EdgeTokenSHA256[0].String()))
	})

	It("says what is wrong with the configuration", func() {
		Expect(mrgc("tenants", "export", "--config", "absent.yaml").err).To(MatchError(ContainSubstring("absent.yaml")))
	})
})
