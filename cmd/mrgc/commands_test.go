package main

import (
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
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
		Entry(nil, "", "Use:", "Operate:", "Roles", "up", "connect", "status", "models", "explain", "replay", "drain", "config", "tenants", "canary", "failover", "scale", "state", "parts", "completion", "router", "controller", "engine"),
		Entry(nil, "up", "--regions", "--instances", "--routers", "--engine ", "--model ", "--engine-url", "--model-name", "--port",
			"--policy", "--sim-profile", "h100-llama-8b or a100-llama-8b", "--sim-slots", "--sim-kv-blocks", "--sim-slow", "--sim-fail", "--state-dir", "--tools-dir", "--ask"),
		Entry(nil, "connect", "--listen", "--endpoint", "--ca", "--releases", "--min-version", "--require-mode", "--allow-region",
			"--recipients", "--receipts", "--require-receipt", "--trust-development-root", "IN PLACE OF AWS's"),
		Entry(nil, "verify-receipt", "FILE", "--releases ", "--releases-key", "--min-version", "--require-mode", "--trust-development-root",
			"--request", "--response", "enclave-verified", "host-asserted"),
		Entry(nil, "status", "--admin", "MRGC_ADMIN_", "--output", "--watch"),
		Entry(nil, "models", "--admin", "--output"),
		Entry(nil, "drain", "drain INSTANCE", "--store", "MRGC_STORE", "--end", "--force", "--wait"),
		Entry(nil, "explain", "explain REQUEST_ID", "Mrgc-Request-Id", "--admin", "--output"),
		Entry(nil, "replay", "replay [TRACE]", "--policy", "--from-admin", "--last", "--output"),
		Entry(nil, "config", "check"),
		Entry(nil, "config check", "check [FILE]"),
		Entry(nil, "tenants", "keygen", "add", "revoke", "sign", "list", "--file"),
		Entry(nil, "tenants add", "NAME", "standard error", "--models", "--regions", "--another-key"),
		Entry(nil, "tenants revoke", "NAME", "--old-keys"),
		Entry(nil, "tenants sign", "--key", "--out", "--valid"),
		Entry(nil, "tenants list", "--output", "--signed", "--verify-key"),
		Entry(nil, "canary", "set", "status", "promote", "abort", "--config", "--output"),
		Entry(nil, "canary set", "MODEL VERSION WEIGHT"),
		Entry(nil, "failover", "status", "hold", "drain", "restore", "resume", "--state", "MRGC_STATE"),
		Entry(nil, "failover status", "--why", "--output"),
		Entry(nil, "failover drain", "drain REGION", "--why", "--by"),
		Entry(nil, "scale", "status"),
		Entry(nil, "scale status", "--state", "--why", "--output"),
		Entry(nil, "controller", "--region", "--state", "--cloudwatch", "--store", "--lease", "--admin-listen", "--name", "--config", "--door", "--identity", "--accelerator"),
		Entry(nil, "state", "init", "schema", "--regions", "--output"),
		Entry(nil, "state init", "--state", "dynamodb:[PREFIX]", "can be run again"),
		Entry(nil, "parts", "fetch"),
		Entry(nil, "parts fetch", "--tools-dir"),
		Entry(nil, "router", "--config", "--store", "--identity", "--grpc-listen", "--http-listen", "--admin-listen",
			"--tenant-address", "--health-address", "--peer", "--tenant-cert", "--tenant-key", "--tenants ", "--tenants-key", "--state", "--envoy-admin", "MRGC_IDENTITY_TOKEN"),
		Entry(nil, "engine", "serve", "guard"),
		Entry(nil, "engine serve", "--kind", "--socket ", "--group-socket", "--model-name", "--model ", "--python-path", "--slots", "--context-tokens",
			"--threads", "--first-token", "--per-token", "--profile", "--kv-blocks", "--speed", "--slowness", "--fail-share", "--listen"),
		Entry(nil, "engine guard", "--listen", "--upstream", "--identity", "--cache", "--slots"),
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
		Entry("router: what it cannot do without", "router", `required flag(s) "identity", "store", "tenant-cert", "tenant-key", "tenants", "tenants-key" not set`),
		Entry("failover drain: a reason", "failover drain use1", `required flag(s) "why" not set`),
		Entry("controller: what it cannot do without", "controller", `required flag(s) "region", "state" not set`),
		Entry("engine serve: a name", "engine serve --socket x", `required flag(s) "model-name" not set`),
		Entry("engine serve: somewhere to listen", "engine serve --model-name x", "at least one of the flags in the group [socket listen] is required"),
		Entry("engine serve: one place to listen", "engine serve --model-name x --socket x --listen x", "none of the others can be"),
		Entry("engine guard: an engine, its cache, and an identity", "engine guard", `required flag(s) "cache", "identity", "upstream" not set`),
		Entry("tenants add: a name", "tenants add", "accepts 1 arg(s), received 0"),
		Entry("tenants sign: a key", "tenants sign", `required flag(s) "key" not set`),
		Entry("tenants list: a key for what is signed", "tenants list --signed x", "they must all be set"),
		Entry("explain: one request", "explain", "accepts 1 arg(s), received 0"),
		Entry("status: no arguments", "status use1", `unknown command "use1"`),
		Entry("status: a router to ask", "status --admin=localhost:1", "want http://host:port"),
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
		Expect(got.stdout).To(Equal(example + " is valid: 3 regions, 1 models, 1 tenants restricted\n"))
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
