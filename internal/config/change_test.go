package config_test

import (
	"os"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
)

var _ = Describe("A configuration", func() {
	change := func(replacements ...string) error {
		GinkgoHelper()
		text, err := os.ReadFile(examplePath)
		Expect(err).NotTo(HaveOccurred())
		is, err := config.Parse(examplePath, text)
		Expect(err).NotTo(HaveOccurred())
		changed := strings.NewReplacer(replacements...).Replace(string(text))
		Expect(changed).NotTo(Equal(string(text)))
		becomes, err := config.Parse(examplePath, []byte(changed))
		Expect(err).NotTo(HaveOccurred())
		return is.Change(becomes, "use1")
	}

	DescribeTable("may become another while it runs", func(replacements ...string) {
		Expect(change(replacements...)).To(Succeed())
	},
		Entry("in its policy", "policy: gate-then-load", "policy: score"),
		Entry("in its models", "qwen2.5-0.5b-instruct", "other"),
		Entry("in its tenants", "blocked: false", "blocked: true"),
		Entry("in its limits", "request_body_bytes: 8388608", "request_body_bytes: 4096"),
		Entry("in its picker", "message_timeout: 50ms", "message_timeout: 60ms"),
		Entry("in its fleet", "stale_after: 15s", "stale_after: 20s"),
		Entry("in where a region spills to", "spill_to: [use2, usw2]", "spill_to: []"),
		Entry("in its other regions", "  - name: usw2\n    aws_region: us-west-2\n", "", "use2, usw2]", "use2]"),
		Entry("in words alone", "# mrgc.yaml:", "#"),
	)

	DescribeTable("may not", func(reason string, replacements ...string) {
		Expect(change(replacements...)).To(MatchError(ContainSubstring(reason)))
	},
		Entry("in the tenants' port", "listeners.tenant_port: 443 cannot become 8443", "tenant_port: 443", "tenant_port: 8443"),
		Entry("in the port of health checks", "listeners.health_port: 8080 cannot become 8081", "health_port: 8080", "health_port: 8081"),
		Entry("in what AWS calls the region", "aws_region of use1: us-east-1 cannot become eu-west-1", "us-east-1", "eu-west-1"),
		Entry("without the region", `"use1", where this runs, is gone`, "name: use1", "name: euw1", "regions: [use1,", "regions: [euw1,"),
	)

	It("says all of it that may not", func() {
		err := change("tenant_port: 443", "tenant_port: 8443", "health_port: 8080", "health_port: 8081")
		Expect(err).To(MatchError(And(ContainSubstring("tenant_port"), ContainSubstring("health_port"))))
	})
})
