package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/routing"
	"github.com/mrgc/mrgc/internal/tenant"
)

const minimal = `
regions:
  - {name: use1, aws_region: us-east-1}
  - {name: use2, aws_region: us-east-2}
  - {name: usw2, aws_region: us-west-2}
models:
  - {name: m}
`

var _ = Describe("A configuration", func() {
	It("has the documented defaults where the file says nothing", func() {
		Expect(config.Parse("mrgc.yaml", []byte(minimal))).To(Equal(&config.Config{
			Regions: []config.Region{
				{Name: "use1", AWSRegion: "us-east-1", SpillTo: []fleet.Region{"use2", "usw2"}, SpillNearest: true, MinInstances: 2, MaxInstances: 20},
				{Name: "use2", AWSRegion: "us-east-2", SpillTo: []fleet.Region{"use1", "usw2"}, SpillNearest: true, MinInstances: 2, MaxInstances: 20},
				{Name: "usw2", AWSRegion: "us-west-2", SpillTo: []fleet.Region{"use1", "use2"}, SpillNearest: true, MinInstances: 2, MaxInstances: 20},
			},
			Models: []config.Model{{Name: "m"}},
			Limits: config.Limits{
				RequestBodyBytes: 8 << 20, ResponseIdleTimeout: 5 * time.Minute, ConcurrentRequestsPerInstance: 64,
			},
			Picker:    config.Picker{MessageTimeout: 50 * time.Millisecond},
			Fleet:     config.Fleet{HeartbeatInterval: 5 * time.Second, StaleAfter: 15 * time.Second},
			Scaling:   config.Scaling{MinInstances: 2, MaxInstances: 20, TargetLow: 10, TargetHigh: 15, FirstTokenWithin: 2 * time.Second},
			Listeners: config.Listeners{TenantPort: 443, HealthPort: 8080},
		}))
	})

	It("has a version that is its content's, whatever the words", func() {
		version := func(text string) string {
			c, err := config.Parse("mrgc.yaml", []byte(text))
			Expect(err).NotTo(HaveOccurred())
			return c.Version()
		}
		Expect(version(minimal)).To(MatchRegexp(`^[0-9a-f]{12}$`))
		Expect(version("# other words\n" + minimal + "picker: {message_timeout: 0.05s}\n")).To(Equal(version(minimal)))
		Expect(version(minimal + "picker: {message_timeout: 60ms}\n")).NotTo(Equal(version(minimal)))
		Expect(version(strings.Replace(minimal, "{name: m}", "{name: m, policy: score}", 1))).NotTo(Equal(version(minimal)))
	})

	It("has the defaults where the file says null", func() {
		want, err := config.Parse("mrgc.yaml", []byte(minimal))
		Expect(err).NotTo(HaveOccurred())
		Expect(config.Parse("mrgc.yaml", []byte(minimal+"tenants:\nlimits: ~\npicker: {message_timeout: null}\n"))).To(Equal(want))
	})

	DescribeTable("takes what the file says",
		func(before, after string, got func(*config.Config) any, want any) {
			text := strings.Replace(minimal, before, after, 1)
			Expect(text).NotTo(Equal(minimal))
			cfg, err := config.Parse("mrgc.yaml", []byte(text))
			Expect(err).NotTo(HaveOccurred())
			Expect(got(cfg)).To(Equal(want))
		},
		Entry("no region to spill to", "us-east-2}", "us-east-2, spill_to: []}",
			func(c *config.Config) any { return c.Regions[1].SpillTo }, []fleet.Region{}),
		Entry("a region's own least, and the cluster's most", "us-east-2}", "us-east-2, min_instances: 4}",
			func(c *config.Config) any {
				return []int{c.Regions[1].MinInstances, c.Regions[1].MaxInstances, c.Regions[0].MinInstances}
			}, []int{4, 20, 2}),
		Entry("the cluster's limits for each region", "models:", "scaling: {min_instances: 3, max_instances: 30}\nmodels:",
			func(c *config.Config) any { return []int{c.Regions[1].MinInstances, c.Regions[1].MaxInstances} }, []int{3, 30}),
		Entry("regions to spill to, in order", "us-east-2}", "us-east-2, spill_to: [usw2, use1]}",
			func(c *config.Config) any { return c.Regions[1].SpillTo }, []fleet.Region{"usw2", "use1"}),
		Entry("the nearest first, of regions in any order", "us-east-2}", "us-east-2, spill_to: [usw2], spill_nearest: true}",
			func(c *config.Config) any { return c.Regions[1].SpillNearest }, true),
		Entry("the order of the file, not the nearest first", "us-east-2}", "us-east-2, spill_nearest: false}",
			func(c *config.Config) any { return c.Regions[1].SpillNearest }, false),
		Entry("an order, which is kept", "us-east-2}", "us-east-2, spill_to: [usw2, use1]}",
			func(c *config.Config) any { return c.Regions[1].SpillNearest }, false),
		Entry("how far regions are", "us-east-2}", "us-east-2, round_trips: [{to: use1, time: 12ms}, {to: usw2, time: 51ms}]}",
			func(c *config.Config) any { return c.Regions[1].RoundTripTimes() }, map[fleet.Region]time.Duration{"use1": 12 * time.Millisecond, "usw2": 51 * time.Millisecond}),
		Entry("where a model is rather served", "name: m", "name: m, prefer: [{region: usw2}, {region: use1, handicap: 500ms}]",
			func(c *config.Config) any { return c.PreferencesByModel() },
			map[string][]routing.Preference{"m": {{Region: "usw2"}, {Region: "use1", Handicap: 500 * time.Millisecond}}}),
		Entry("where a tenant is rather served", "models:", "tenants: [{name: acme, prefer: [{region: use2}]}, {name: other}]\nmodels:",
			func(c *config.Config) any { return c.PreferencesByTenant() }, map[string][]routing.Preference{"acme": {{Region: "use2"}}}),
		Entry("whose certificates tenants may show", "models:", "tenant_client_ca: ca.pem\nmodels:",
			func(c *config.Config) any { return c.TenantClientCA }, "ca.pem"),
		Entry("a name that looks like a number", "name: m", "name: 0123",
			func(c *config.Config) any { return c.Models[0].Name }, "0123"),
		Entry("a name that looks like a truth value", "name: m", "name: yes",
			func(c *config.Config) any { return c.Models[0].Name }, "yes"),
		Entry("a model's policy", "name: m", "name: m, policy: least-in-flight",
			func(c *config.Config) any { return c.Policies() }, map[string]routing.Policy{"m": routing.PolicyLeastInFlight}),
		Entry("the default policy, by its name", "name: m", "name: m, policy: gate-then-load",
			func(c *config.Config) any { return c.Models[0] }, config.Model{Name: "m"}),
		Entry("a tenant that is blocked", "models:", "tenants: [{name: acme, blocked: true}]\nmodels:",
			func(c *config.Config) any { return c.Restrictions() }, []tenant.Restriction{{Name: "acme", Blocked: true}}),
		Entry("what is left to a tenant, and what is not", "models:", "tenants: [{name: acme, models: [], regions: [use1]}]\nmodels:",
			func(c *config.Config) any { return c.Restrictions() }, []tenant.Restriction{{Name: "acme", Models: tenant.Names{}, Regions: tenant.Names{"use1"}}}),
		Entry("how much a tenant may ask for at most", "models:", "tenants: [{name: acme, requests_per_second: 2, tokens_per_minute: 3, weight: 4}]\nmodels:",
			func(c *config.Config) any { return c.Restrictions() },
			[]tenant.Restriction{{Name: "acme", Limits: tenant.Limits{RequestsPerSecond: 2, TokensPerMinute: 3, Weight: 4}}}),
		Entry("versions and their weights", "name: m", "name: m, versions: [{name: \"1\", weight: 1000}, {name: v2}]",
			func(c *config.Config) any { return c.Splits() },
			map[string]routing.Split{"m": {{Name: "1", Weight: 1000}, {Name: "v2"}}}),
		Entry("no versions", "name: m", "name: m, versions: []",
			func(c *config.Config) any { return c.Splits() }, map[string]routing.Split{}),
		Entry("when instances are washed", "models:", "wash: {every_requests: 9, every: 2m, on_tenant_change: true, strict: true}\nmodels:",
			func(c *config.Config) any { return c.Wash },
			config.Wash{EveryRequests: 9, Every: 2 * time.Minute, OnTenantChange: true, Strict: true}),
		Entry("that washes restart engines", "models:", "wash: {restart_engine: true}\nmodels:", func(c *config.Config) any { return c.Wash }, config.Wash{RestartEngine: true}),
		Entry("no washes, which is the default", "name: m", "name: n", func(c *config.Config) any { return c.Wash }, config.Wash{}),
		Entry("a duration of two units", "models:", "limits: {response_idle_timeout: 1m30s}\nmodels:",
			func(c *config.Config) any { return c.Limits.ResponseIdleTimeout }, 90*time.Second),
	)

	It("is read from a file, which the errors name", func() {
		path := filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
		Expect(os.WriteFile(path, []byte(minimal), 0o600)).To(Succeed())
		cfg, err := config.Load(path)
		Expect(err).NotTo(HaveOccurred())
		Expect(cfg.Regions).To(HaveLen(3))

		Expect(os.WriteFile(path, []byte(minimal+"bogus: 1\n"), 0o600)).To(Succeed())
		_, err = config.Load(path)
		Expect(err).To(MatchError(HavePrefix(path + ":8: unknown field")))
	})

	It("is not read where there is no file", func() {
		_, err := config.Load(filepath.Join(GinkgoT().TempDir(), "mrgc.yaml"))
		Expect(err).To(MatchError(os.ErrNotExist))
	})

	It("is refused when it is too large, at the limit and not below", func() {
		const limit = 1 << 20
		path := filepath.Join(GinkgoT().TempDir(), "mrgc.yaml")
		for _, size := range []int{limit, limit + 1} {
			text := minimal + "#" + strings.Repeat("x", size-len(minimal)-1)
			Expect(os.WriteFile(path, []byte(text), 0o600)).To(Succeed())
			_, err := config.Load(path)
			if size <= limit {
				Expect(err).NotTo(HaveOccurred())
			} else {
				Expect(err).To(MatchError(path + ": larger than 1048576 bytes"))
			}
		}
	})
})

// Each file of testdata/bad ends with the errors that it gives, a comment
// "# want: …" for each, without the name of the file.
var _ = Describe("A faulty file", func() {
	paths, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(paths) == 0 {
		panic("testdata/bad is gone")
	}
	for _, path := range paths {
		It("gives errors that say where: "+filepath.Base(path), func() {
			text, err := os.ReadFile(path)
			Expect(err).NotTo(HaveOccurred())
			var want []string
			for line := range strings.Lines(string(text)) {
				if fault, is := strings.CutPrefix(line, "# want: "); is {
					want = append(want, "mrgc.yaml:"+strings.TrimSuffix(fault, "\n"))
				}
			}
			cfg, err := config.Parse("mrgc.yaml", text)
			Expect(err).To(HaveOccurred())
			Expect(strings.Split(err.Error(), "\n")).To(Equal(want))
			Expect(cfg).To(BeNil())
		})
	}
})

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	paths, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range append(paths, "../../mrgc.example.yaml") {
		text, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse("mrgc.yaml", data)
		if (cfg == nil) == (err == nil) {
			t.Fatalf("want a configuration or an error: %v, %v", cfg, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "mrgc.yaml:") {
			t.Fatalf("the error does not say where: %v", err)
		}
	})
}
