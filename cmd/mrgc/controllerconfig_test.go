package main

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gbytes"

	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/ec2/moto"
	"github.com/mrgc/mrgc/internal/config"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

const scaledCluster = `
regions: [{name: use1, aws_region: us-east-1}, {name: use2, aws_region: us-east-2}]
models: [{name: m}]
`

var _ = Describe("What a controller takes from its configuration", func() {
	read := func(text string) *config.Config {
		GinkgoHelper()
		cluster, err := config.Parse("mrgc.yaml", []byte(scaledCluster+text))
		Expect(err).NotTo(HaveOccurred())
		return cluster
	}

	It("is its region's rules, which are the autoscaler's own by default", func() {
		held := holding(read(""))
		Expect(held.rules("use1", []string{"a"}).Defaulted()).To(Equal(autoscaler.Config{Region: "use1", Zones: []string{"a"}}.Defaulted()))
		held.Store(read("scaling: {min_instances: 3, target_low_requests_per_second: 4, target_high_requests_per_second: 6, learn: true, forecast: true}"))
		Expect(held.rules("use2", []string{"a"})).To(Equal(autoscaler.Config{
			Region: "use2", Zones: []string{"a"}, Min: 3, Max: 20, TargetLow: 4, TargetHigh: 6, Learn: true, Forecast: true,
		}))
		held.Store(read("scaling: {reserve: true}"))
		Expect(held.rules("use2", nil)).To(And(HaveField("Reserve", true), HaveField("Learn", false), HaveField("Forecast", false)))
	})

	It("is nothing that the autoscaler refuses", func() {
		held := holding(read("scaling: {min_instances: 250, max_instances: 250, target_low_requests_per_second: 10000, target_high_requests_per_second: 10000}"))
		rules := held.rules("use1", []string{"a"})
		Expect(rules.Check()).To(Succeed())
	})
})

// ec2WithTemplate gives the address of an emulator of EC2 that has the launch template.
func ec2WithTemplate(ctx context.Context) string {
	GinkgoHelper()
	if missing := moto.Missing(); missing != "" {
		Skip(missing)
	}
	GinkgoT().Setenv("AWS_ACCESS_KEY_ID", "local")
	GinkgoT().Setenv("AWS_SECRET_ACCESS_KEY", "local")
	server, err := moto.Start(ctx, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(server.Kill)
	front, err := moto.NewFront(server)
	Expect(err).NotTo(HaveOccurred())
	listening := httptest.NewServer(front)
	DeferCleanup(listening.Close)
	client := sdk.New(sdk.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(server.Endpoint), Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	})
	images, err := client.DescribeImages(ctx, &sdk.DescribeImagesInput{})
	Expect(err).NotTo(HaveOccurred())
	_, err = client.CreateLaunchTemplate(ctx, &sdk.CreateLaunchTemplateInput{
		LaunchTemplateName: aws.String("mrgc-gpu"),
		LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: images.Images[0].ImageId, InstanceType: "g6e.2xlarge"},
	})
	Expect(err).NotTo(HaveOccurred())
	return listening.URL
}

var _ = Describe("mrgc controller, when its configuration changes while it runs", func() {
	It("goes by what it says with its next step, and refuses what takes a restart", func(ctx SpecContext) {
		dir := GinkgoT().TempDir()
		path, address := filepath.Join(dir, "mrgc.yaml"), "sqlite:"+filepath.Join(dir, "state.db")
		write := func(text string) {
			GinkgoHelper()
			Expect(os.WriteFile(path+".draft", []byte(text), 0o600)).To(Succeed())
			Expect(os.Rename(path+".draft", path)).To(Succeed())
		}
		endpoint := ec2WithTemplate(ctx)
		write(scaledCluster + "scaling: {min_instances: 1}\n")
		life, end := context.WithCancel(ctx)
		done, log := make(chan error, 1), gbytes.NewBuffer()
		go func() {
			done <- run(life, []string{
				"controller", "--config", path, "--region", "use1", "--state", address, "--store", "sqlite:" + filepath.Join(dir, "fleet.db"),
				"--ec2", "mrgc-gpu?zones=us-east-1a,us-east-1b&endpoint=" + endpoint, "--admin-listen", "127.0.0.1:0",
			}, GinkgoWriter, log)
		}()
		DeferCleanup(func() { end(); Eventually(done, "10s").Should(Receive(BeNil())) })
		store, err := open.Store(ctx, address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		launched := func() int {
			row, err := state.AutoscalingTable(store).Get(ctx, state.Key{Partition: "use1"})
			if err != nil {
				return 0 // nothing is decided yet
			}
			n := 0
			for _, action := range row.Value.Journal.Done {
				if strings.HasPrefix(action.What, "launch ") && action.Error == "" {
					n++
				}
			}
			return n
		}
		why := func() string {
			GinkgoHelper()
			got := mrgc("scale", "status", "--state", address, "--why")
			Expect(got.err).NotTo(HaveOccurred())
			return got.stdout
		}
		const step = "30s" // it takes one each 10 s
		Eventually(launched, step).Should(Equal(1))
		Expect(why()).To(MatchRegexp(`use1 +plain rules +nothing else`))

		write(scaledCluster + "scaling: {min_instances: 3, learn: true, reserve: true, forecast: true}\n")
		Eventually(launched, step).Should(Equal(3))
		Expect(why()).To(And(MatchRegexp(`use1 +learn `), MatchRegexp(`use1 +reserve `), MatchRegexp(`use1 +forecast `), ContainSubstring("1 is not within 3 to 20")))

		write(strings.Replace(scaledCluster, "use2", "usw2", 1) + "scaling: {min_instances: 9}\n")
		Eventually(log).Should(gbytes.Say(`the configuration is refused; the one before stays in force.*\\"use2\\" is gone`))
		write(scaledCluster + "scaling: {min_instances: 2}\n")
		Eventually(why, step).Should(And(MatchRegexp(`use1 +plain rules`), MatchRegexp(`use1 +3 +2 +20 `)), "and the number stays as it is without a load")
		Expect(launched()).To(Equal(3))
	}, SpecTimeout(3*time.Minute))
})
