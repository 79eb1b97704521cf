package local

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	benchcluster "github.com/mrgc/mrgc/bench/cluster"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/dynamo"
	"github.com/mrgc/mrgc/internal/fleet/dynamodb/dynamodblocal"
	"github.com/mrgc/mrgc/internal/state/schema"
)

var _ = Describe("A plan with DynamoDB", func() {
	withDynamoDB := func(o *Options) { o.Store = StoreDynamoDB }

	It("has each region's processes use the region's own endpoint, and nobody a file", func() {
		p := planFor(withAccelerator, withDynamoDB, func(o *Options) { o.Wash = true })
		byName := children(p)
		for _, r := range p.regions {
			query := "?region=" + r.aws + "&endpoint=http://" + p.dynamo.fronts[r.name]
			router, parent, controller := byName["router-"+r.name], byName["parent-"+r.name+"-0"], byName["controller-"+r.name]
			Expect(flagOf(router, "--store")).To(Equal("dynamodb:gpu_instances" + query))
			Expect(flagOf(router, "--state")).To(Equal("dynamodb:" + query))
			Expect(flagOf(controller, "--store")).To(Equal("dynamodb:gpu_instances" + query))
			Expect(flagOf(controller, "--state")).To(Equal("dynamodb:" + query))
			Expect(flagOf(parent, "-store")).To(Equal("dynamodb:gpu_instances" + query))
			Expect(flagOf(parent, "-state")).To(Equal("dynamodb:" + query))
			for _, child := range []process{router, parent, controller} {
				Expect(child.env).To(ContainElement(HavePrefix("AWS_ACCESS_KEY_ID=")), child.name)
			}
		}
		for _, child := range byName {
			Expect(strings.Join(child.args, " ")).NotTo(ContainSubstring("sqlite:"), child.name)
		}
		env := p.env("key")
		Expect(strings.Join(env, "\n")).NotTo(ContainSubstring("sqlite:"))
		Expect(env).To(ContainElements(
			"export MRGC_DYNAMODB_USE1=http://"+p.dynamo.fronts["use1"],
			"export MRGC_STATE='dynamodb:?region=us-west-2&endpoint=http://"+p.dynamo.fronts["usw2"]+"'"))
	})

	It("has an endpoint and a DynamoDB Local for each region, which know the others, and one for all", func() {
		p := planFor(withDynamoDB)
		all := p.stores()
		Expect(all).To(HaveLen(3))
		Expect(all[0].name).To(Equal("globaltables"))
		Expect(flagOf(all[0], "--dynamodb-local")).To(Equal(p.dynamo.strong))
		addresses := map[string]bool{p.dynamo.strong: true}
		for i, child := range all[1:] {
			r, other := p.regions[i], p.regions[1-i]
			Expect(child.name).To(Equal("globaltables-" + r.name))
			Expect(child.rank).To(BeNumerically("<", children(p)["parent-use1-0"].rank), "it is stopped after those that use it")
			Expect(flagOf(child, "--region")).To(Equal(r.aws))
			Expect(flagOf(child, "--strong")).To(Equal("http://" + p.dynamo.strong))
			Expect(flagOf(child, "--peer")).To(Equal(other.aws + "=http://" + p.dynamo.fronts[other.name]))
			Expect(flagOf(child, "--dir")).To(Equal("/state/dynamodb/" + r.name))
			addresses[flagOf(child, "--listen")], addresses[flagOf(child, "--dynamodb-local")] = true, true
		}
		Expect(addresses).To(HaveLen(5))
		Expect(planFor().stores()).To(BeEmpty())
	})

	It("has a region's processes in its network, and at its address, where it has one", func() {
		p := planFor(withAccelerator, withDynamoDB, func(o *Options) { o.RegionNetworks = map[string]string{"use1": "east@127.1.0.1"} })
		for _, child := range append(p.stores(), must(p.processes((&grants{}).grant))...) {
			program := HaveExactElements("nsenter", "--net=/run/netns/east")
			if strings.Contains(child.name+"-", "-use1-") {
				Expect(child.args[:2]).To(program, child.name)
			} else {
				Expect(child.args[:2]).NotTo(program, child.name)
			}
		}
		r := p.regions[0]
		for _, address := range []string{
			r.tenant, r.health, r.envoyAdmin, r.controller, r.routers[1].grpc, r.routers[1].http, r.routers[1].admin,
			r.instances[1].parent, r.instances[1].guard, r.instances[1].metrics, p.dynamo.fronts["use1"], p.dynamo.locals["use1"],
		} {
			Expect(address).To(HavePrefix("127.1.0.1:"))
		}
		Expect(p.endpoints()).To(HaveExactElements(HavePrefix("https://127.1.0.1:"), HavePrefix("https://127.0.0.1:")))
		Expect(p.dynamo.strong).To(HavePrefix("127.0.0.1:"))
	})
})

var _ = Describe("A region's DynamoDB", func() {
	It("is started again when it dies, with its data, and ends with who runs it", func(ctx SpecContext) {
		if missing := dynamodblocal.Missing(); missing != "" {
			Skip(missing)
		}
		good := gleak.Goroutines()
		DeferCleanup(func() { Eventually(gleak.Goroutines, "10s").ShouldNot(gleak.HaveLeaked(good)) })
		draw := newPorts().draw
		g := GlobalTables{
			Dir: filepath.Join(GinkgoT().TempDir(), "data"), Local: must(draw()), Region: "us-east-1", Listen: must(draw()),
			Logger: slog.New(slog.NewTextHandler(GinkgoWriter, nil)),
		}
		g.Strong = "http://" + g.Local // its tables are strongly consistent by themselves
		life, stop := context.WithCancel(ctx)
		ended := make(chan error, 1)
		go func() { ended <- g.Run(life) }()
		client, err := dynamo.NewClient(ctx, awsclient.Settings{
			Region: g.Region, Endpoint: "http://" + g.Listen, Credentials: credentials.NewStaticCredentialsProvider("AKIDEXAMPLE", "secret", ""),
		})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(client.Close)
		table := schema.FleetKeys
		Expect(ensure(ctx, client, table)).To(Succeed())

		java := must(benchcluster.Below(os.Getpid()))
		Expect(java).To(HaveLen(1))
		Expect(syscall.Kill(java[0], syscall.SIGKILL)).To(Succeed())
		Eventually(func() ([]int, error) { return benchcluster.Below(os.Getpid()) }, "20s", "50ms").Should(And(HaveLen(1), Not(Equal(java))))
		Eventually(func() ([]string, error) {
			report, err := client.Ensure(ctx, table)
			return report.Did, err
		}, "20s", "100ms").Should(BeEmpty(), "the table is there")
		stop()
		Eventually(ended, "10s").Should(Receive(BeNil()))
		Expect(benchcluster.Below(os.Getpid())).To(BeEmpty())
	}, SpecTimeout(time.Minute))
})

var _ = Describe("Options of the store", func() {
	DescribeTable("are refused", func(want string, change func(*Options)) {
		o := Options{Regions: []string{"use1"}}
		change(&o)
		Expect(o.checkStores()).To(MatchError(ContainSubstring(want)))
	},
		Entry("with a store that there is none of", "--store file: want sqlite or dynamodb", func(o *Options) { o.Store = "file" }),
		Entry("with DynamoDB where there is no Java", "install a JDK 17 and Maven, then run `make dynamodb-local`; or leave the flag out", func(o *Options) {
			GinkgoT().Setenv("PATH", "")
			o.Store = StoreDynamoDB
		}),
		Entry("with a network of a region that is not run", "want REGION=NAMESPACE@ADDRESS", func(o *Options) {
			o.RegionNetworks = map[string]string{"use2": "x@127.1.0.1"}
		}),
		Entry("with a network whose address others reach", "want REGION=NAMESPACE@ADDRESS, a loopback address", func(o *Options) {
			o.RegionNetworks = map[string]string{"use1": "x@10.0.0.1"}
		}),
	)

	It("are fine by default", func() {
		Expect((&Options{}).checkStores()).To(Succeed())
	})
})

func must[T any](value T, err error) T {
	GinkgoHelper()
	Expect(err).NotTo(HaveOccurred())
	return value
}
