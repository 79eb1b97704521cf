package config_test

import (
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
)

var _ = Describe("A configuration", func() {
	const file = `# words
regions: [{name: use1, aws_region: us-east-1, spill_to: [use2]}, {name: use2, aws_region: us-east-2}, {name: usw2, aws_region: us-west-2}]
models: [{name: m, policy: score}]
tenants: [{name: acme, blocked: false}]
limits: {request_body_bytes: 8192}
picker: {message_timeout: 40ms}
fleet: {stale_after: 15s}
listeners: {tenant_port: 443, health_port: 8080}
`
	change := func(replacements ...string) error {
		GinkgoHelper()
		is, err := config.Parse("mrgc.yaml", []byte(file))
		Expect(err).NotTo(HaveOccurred())
		changed := strings.NewReplacer(replacements...).Replace(file)
		Expect(changed).NotTo(Equal(file))
		becomes, err := config.Parse("mrgc.yaml", []byte(changed))
		Expect(err).NotTo(HaveOccurred())
		return is.Change(becomes, "use1")
	}

	DescribeTable("may become another while it runs", func(replacements ...string) {
		Expect(change(replacements...)).To(Succeed())
	},
		Entry("in its policy", "policy: score", "policy: round-robin"),
		Entry("in its models", "name: m", "name: other"),
		Entry("in what it prefers", "policy: score", "policy: score, prefer: [{region: use2}]"),
		Entry("in its tenants", "blocked: false", "blocked: true"),
		Entry("in its limits", "request_body_bytes: 8192", "request_body_bytes: 4096"),
		Entry("in its picker", "message_timeout: 40ms", "message_timeout: 60ms"),
		Entry("in its fleet", "stale_after: 15s", "stale_after: 20s"),
		Entry("in where a region spills to", "spill_to: [use2]", "spill_to: []"),
		Entry("in its other regions", ", {name: usw2, aws_region: us-west-2}", ""),
		Entry("in words alone", "# words", "# others"),
	)

	DescribeTable("may not", func(reason string, replacements ...string) {
		Expect(change(replacements...)).To(MatchError(ContainSubstring(reason)))
	},
		Entry("in the tenants' port", "listeners.tenant_port: 443 cannot become 8443", "tenant_port: 443", "tenant_port: 8443"),
		Entry("in the port of health checks", "listeners.health_port: 8080 cannot become 8081", "health_port: 8080", "health_port: 8081"),
		Entry("in what AWS calls the region", "aws_region of use1: us-east-1 cannot become eu-west-1", "us-east-1", "eu-west-1"),
		Entry("without the region", `"use1", where this runs, is gone`, "name: use1", "name: euw1"),
		Entry("in whose certificates tenants may show", `tenant_client_ca: "" cannot become "ca.pem"`, "# words", "tenant_client_ca: ca.pem"),
	)

	It("says all of it that may not", func() {
		err := change("tenant_port: 443", "tenant_port: 8443", "health_port: 8080", "health_port: 8081")
		Expect(err).To(MatchError(And(ContainSubstring("tenant_port"), ContainSubstring("health_port"))))
	})
})
