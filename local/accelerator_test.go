package local

import (
	"context"
	"net"
	"os"
	"os/exec"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sync/errgroup"

	"github.com/mrgc/mrgc/controller/accelerator"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/standin/softaccelerator"
)

func withAccelerator(o *Options) { o.Accelerator = true }

var _ = Describe("The plan's accelerator", func() {
	It("is there when it is asked for, and only then", func() {
		for _, p := range []*plan{planFor(), planFor(withAccelerator)} {
			asked := p.options.Accelerator
			env := strings.Join(p.env("key"), "\n")
			Expect(strings.Contains(env, "MRGC_ACCELERATOR")).To(Equal(asked))
			Expect(p.accelerator.near).To(HaveLen(map[bool]int{true: 2}[asked]))
		}
	})

	It("has each region's Envoy behind it, checked where it says whether it is well", func() {
		p := planFor(withAccelerator)
		config, err := p.acceleratorConfig()
		Expect(err).NotTo(HaveOccurred())
		Expect(config.Groups).To(HaveLen(2))
		for i, group := range config.Groups {
			Expect(group.Region).To(Equal(p.regions[i].aws))
			Expect(group.Endpoints).To(HaveExactElements(HaveField("Address", p.regions[i].tenant)))
			_, port, err := net.SplitHostPort(p.regions[i].health)
			Expect(err).NotTo(HaveOccurred())
			Expect(net.LookupPort("tcp", port)).To(Equal(group.Check.Port))
		}
	})

	It("knows for each region which are how near", func() {
		Expect(nearest).To(HaveLen(len(allRegions)))
		for region, order := range nearest {
			Expect(order).To(ConsistOf(allRegions))
			Expect(order[0]).To(Equal(region))
		}
	})

	It("gives an operator what the AWS SDK needs, in a file that a shell can read", func() {
		p := planFor(withAccelerator)
		script := string(p.acceleratorFile()) + strings.Join(p.acceleratorEnv(), "\n") + `
			printf '%s\n' "$AWS_REGION" "$AWS_ACCESS_KEY_ID" "$AWS_ENDPOINT_URL_GLOBAL_ACCELERATOR" "$MRGC_ACCELERATOR" "$MRGC_ACCELERATOR_USW2"`
		said, err := exec.Command("/bin/sh", "-c", script).Output()
		Expect(err).NotTo(HaveOccurred())
		Expect(strings.Fields(string(said))).To(Equal([]string{
			"us-west-2", p.accelerator.credentials.AccessKeyID, "http://" + p.accelerator.api,
			softaccelerator.ListenerARN + "?endpoint=http://" + p.accelerator.api, "https://" + p.accelerator.near["usw2"],
		}))
	})

	Describe("as it is served", func() {
		var p *plan
		BeforeEach(func() {
			state := GinkgoT().TempDir()
			unlock, err := lockState(state)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(unlock)
			o := planFor(withAccelerator).options
			o.StateDir = state
			p, err = newPlan(o, "/tmp/mrgc-1", "127.0.0.1:8400", newPorts().draw)
			Expect(err).NotTo(HaveOccurred())
		})
		serve := func() (*errgroup.Group, error) {
			ctx, stop := context.WithCancel(context.Background())
			group, serving := errgroup.WithContext(ctx)
			DeferCleanup(func() {
				stop()
				Expect(group.Wait()).To(Succeed())
			})
			return group, p.serveAccelerator(serving, group)
		}

		It("has dials that the driver sets, by the address that .mrgc/env names, and forwards", func(ctx SpecContext) {
			envoy, err := net.Listen("tcp", p.regions[1].tenant)
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(envoy.Close)
			_, err = serve()
			Expect(err).NotTo(HaveOccurred())
			for _, line := range p.accelerator.credentials.Environment() {
				name, value, _ := strings.Cut(line, "=")
				GinkgoT().Setenv(name, value)
			}
			at, err := awsclient.ParseAddress(p.acceleratorAddress())
			Expect(err).NotTo(HaveOccurred())
			driver, err := accelerator.Open(ctx, accelerator.Config{
				Settings: at.Settings, Listener: at.Name, Regions: map[string]fleet.Region{"us-east-1": "use1", "us-west-2": "usw2"},
			})
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(driver.Close)
			Expect(driver.SetDial(ctx, "a", "usw2", 50)).To(Succeed())
			Expect(driver.Dials(ctx)).To(Equal(map[fleet.Region]int{"use1": 100, "usw2": 50}))

			tenant, err := net.Dial("tcp", p.accelerator.near["usw2"])
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(tenant.Close)
			through, err := envoy.Accept()
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(through.Close)
			Expect(os.ReadFile(p.accelerator.log)).To(ContainSubstring(`"dial_percent":50`))
			info, err := os.Stat(p.accelerator.env)
			Expect(err).NotTo(HaveOccurred())
			Expect(info.Mode().Perm()).To(Equal(os.FileMode(0o600)))
		})

		It("is not there with an address that is taken, and leaves nothing open", func() {
			taken, err := net.Listen("tcp", p.accelerator.near["usw2"])
			Expect(err).NotTo(HaveOccurred())
			DeferCleanup(taken.Close)
			group, err := serve()
			Expect(err).To(MatchError(And(HavePrefix("software accelerator: "), ContainSubstring("address already in use"))))
			Expect(group.Wait()).To(Succeed())
			Expect(free(p.accelerator.api)).To(Succeed())
			Expect(free(p.accelerator.near["use1"])).To(Succeed())
		})

		It("takes the file of an earlier start away when it is not asked for", func() {
			Expect(os.WriteFile(p.accelerator.env, nil, 0o600)).To(Succeed())
			p.accelerator.api = ""
			_, err := serve()
			Expect(err).NotTo(HaveOccurred())
			Expect(p.accelerator.env).NotTo(BeAnExistingFile())
		})
	})
})
