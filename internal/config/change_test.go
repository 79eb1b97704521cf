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
		Entry("in how it is scaled", "# words", "scaling: {max_instances: 30, learn: true, reserve: true, forecast: true}"),
		Entry("in how many instances a region has", "name: use1,", "name: use1, min_instances: 3,"),
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

	DescribeTable("that controllers watch all regions by may not change either", func(reason string, replacements ...string) {
		before, err := config.Parse("mrgc.yaml", []byte(file))
		Expect(err).NotTo(HaveOccurred())
		after, err := config.Parse("mrgc.yaml", []byte(strings.NewReplacer(replacements...).Replace(file)))
		Expect(err).NotTo(HaveOccurred())
		if reason == "" {
			Expect(before.ChangeEverywhere(after, "use1")).To(Succeed())
			return
		}
		Expect(before.ChangeEverywhere(after, "use1")).To(MatchError(ContainSubstring(reason)))
	},
		Entry("by an instance less", "", "name: use1,", "name: use1, min_instances: 1,"),
		Entry("without another region", `"usw2" is gone`, ", {name: usw2, aws_region: us-west-2}", ""),
		Entry("with one more", `"euw1" is new`, "us-west-2}]", "us-west-2}, {name: euw1, aws_region: eu-west-1}]"),
		Entry("in what AWS calls another", "aws_region of usw2: us-west-2 cannot become us-west-1", "us-west-2", "us-west-1"),
		Entry("in what AWS calls its own, once", "aws_region of use1: us-east-1 cannot become us-east-3", "us-east-1", "us-east-3"),
		Entry("in what routers refuse", "listeners.tenant_port", "tenant_port: 443", "tenant_port: 8443"),
	)

	It("says all of it that may not", func() {
		err := change("tenant_port: 443", "tenant_port: 8443", "health_port: 8080", "health_port: 8081")
		Expect(err).To(MatchError(And(ContainSubstring("tenant_port"), ContainSubstring("health_port"))))
	})
})
