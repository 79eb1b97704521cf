package ec2_test

import (
	"context"
	"fmt"
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/controller/ec2"
	"github.com/mrgc/mrgc/controller/ec2/moto"
	"github.com/mrgc/mrgc/internal/awsclient"
)

func TestEC2(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "controller/ec2")
}

var _ = Describe("EC2", Ordered, func() {
	var server *moto.Server
	BeforeAll(func(ctx SpecContext) {
		if missing := moto.Missing(); missing != "" {
			Skip(missing)
		}
		var err error
		server, err = moto.Start(ctx, GinkgoWriter)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(server.Kill)
		template(ctx, server.Endpoint)
	})
	var (
		there   *moto.Front
		at      string
		cluster int
		config  ec2.Config
		cloud   *ec2.Cloud
	)
	open := func(ctx context.Context, change ...func(*ec2.Config)) *ec2.Cloud {
		GinkgoHelper()
		c := config
		for _, f := range change {
			f(&c)
		}
		opened, err := ec2.Open(ctx, c)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(opened.Close)
		return opened
	}
	BeforeEach(func(ctx SpecContext) {
		var err error
		there, err = moto.NewFront(server)
		Expect(err).NotTo(HaveOccurred())
		front := httptest.NewServer(there)
		DeferCleanup(front.Close)
		at = front.URL
		cluster++
		config = ec2.Config{
			Settings: settings(at), Template: "mrgc-gpu", Cluster: fmt.Sprintf("cluster-%d", cluster), Scales: "use1",
			Zones: ec2.ParseZones("us-east-1a,us-east-1b"),
		}
		cloud = open(ctx)
	})
	launch := func(ctx context.Context, intent string, zone string) autoscaler.Result {
		GinkgoHelper()
		result, err := cloud.Launch(ctx, autoscaler.Action{Kind: autoscaler.Launch, Intent: intent, Zone: zone, Attempt: 1, Token: intent + "-1"})
		Expect(err).NotTo(HaveOccurred())
		Expect(result.Intent).To(Equal(intent))
		Expect(result.Attempt).To(Equal(1))
		return result
	}

	It("launches by the template, in a zone, and finds by tags what it has launched, and nothing else", func(ctx SpecContext) {
		a, b := launch(ctx, "use1-1-1", "us-east-1a"), launch(ctx, "use1-1-2", "us-east-1b")
		Expect(cloud.Instances(ctx)).To(ConsistOf(
			controller.CloudInstance{ID: a.Instance, Intent: "use1-1-1", Zone: "us-east-1a"},
			controller.CloudInstance{ID: b.Instance, Intent: "use1-1-2", Zone: "us-east-1b"},
		))
		Expect(open(ctx, func(c *ec2.Config) { c.Scales = "use2" }).Instances(ctx)).To(BeEmpty(), "another region's")
		Expect(open(ctx, func(c *ec2.Config) { c.Cluster = "other" }).Instances(ctx)).To(BeEmpty(), "another cluster's")
		asked := there.Asked("RunInstances")
		Expect(asked[0].Get("ClientToken")).To(Equal("use1-1-1-1"))
		Expect(asked[0].Get("LaunchTemplate.LaunchTemplateName")).To(Equal("mrgc-gpu"))
		Expect(asked[0].Get("MinCount") + asked[0].Get("MaxCount")).To(Equal("11"))
	})

	It("terminates, once or more often", func(ctx SpecContext) {
		a := launch(ctx, "use1-1-1", "us-east-1a")
		for range 2 {
			Expect(cloud.Terminate(ctx, a.Instance)).To(Succeed())
		}
		Expect(cloud.Terminate(ctx, "i-0123456789abcdef0")).To(Succeed(), "one that is not there")
		Expect(cloud.Instances(ctx)).To(BeEmpty())
	})

	It("says which are leaving", func(ctx SpecContext) {
		a := launch(ctx, "use1-1-1", "us-east-1a")
		_, err := client(server.Endpoint).StopInstances(ctx, &sdk.StopInstancesInput{InstanceIds: []string{a.Instance}})
		Expect(err).NotTo(HaveOccurred())
		Expect(cloud.Instances(ctx)).To(ConsistOf(HaveField("Leaving", true)))
	})

	It("lists more than a page has", func(ctx SpecContext) {
		there.PageBy(5)
		for i := range 12 {
			launch(ctx, fmt.Sprintf("use1-1-%d", i), "us-east-1a")
		}
		Expect(cloud.Instances(ctx)).To(HaveLen(12))
		Expect(there.Asked("DescribeInstances")).To(HaveLen(3), "pages of 5")
	})

	DescribeTable("takes for no capacity", func(ctx SpecContext, code string) {
		there.Refuse("RunInstances us-east-1a", moto.Refusal{Code: code})
		result := launch(ctx, "use1-1-1", "us-east-1a")
		Expect(result.NoCapacity).To(BeTrue())
		Expect(result.Instance).To(BeEmpty())
		Expect(launch(ctx, "use1-1-1", "us-east-1b").Instance).NotTo(BeEmpty(), "another zone has some")
	},
		Entry(nil, "InsufficientInstanceCapacity"), Entry(nil, "Unsupported"), Entry(nil, "VcpuLimitExceeded"))

	It("tries again when it is throttled", func(ctx SpecContext) {
		there.Refuse("RunInstances", moto.Refusal{Code: "RequestLimitExceeded", Times: 2})
		Expect(launch(ctx, "use1-1-1", "us-east-1a").Instance).NotTo(BeEmpty())
		Expect(there.Asked("RunInstances")).To(HaveLen(3))
	})

	It("repeats a launch whose answer was lost with the same token, and finds by its intent what was launched", func(ctx SpecContext) {
		there.Lose("RunInstances", 1)
		launch(ctx, "use1-1-1", "us-east-1a")
		asked := there.Asked("RunInstances")
		Expect(asked).To(HaveLen(2))
		Expect(asked[0].Get("ClientToken")).To(Equal(asked[1].Get("ClientToken")))
		Expect(cloud.Instances(ctx)).To(ConsistOf(HaveField("Intent", "use1-1-1")))
	})

	It("says what it could not do", func(ctx SpecContext) {
		for _, action := range []string{"RunInstances", "DescribeInstances", "TerminateInstances"} {
			there.Refuse(action, moto.Refusal{Code: "UnauthorizedOperation"})
		}
		_, err := cloud.Launch(ctx, autoscaler.Action{Intent: "use1-1-1", Zone: "us-east-1a"})
		Expect(err).To(MatchError(And(ContainSubstring("launch use1-1-1 in us-east-1a"), ContainSubstring("UnauthorizedOperation"))))
		_, err = cloud.Launch(ctx, autoscaler.Action{Intent: "use1-1-1", Zone: "us-east-1c"})
		Expect(err).To(MatchError(ContainSubstring(`zone "us-east-1c" is not one of those`)))
		_, err = cloud.Instances(ctx)
		Expect(err).To(MatchError(ContainSubstring("list the instances of use1")))
		Expect(cloud.Terminate(ctx, "i-1")).To(MatchError(ContainSubstring("terminate i-1")))
	})

	DescribeTable("is not opened with", func(ctx SpecContext, change func(*ec2.Config), reason string) {
		change(&config)
		_, err := ec2.Open(ctx, config)
		Expect(err).To(MatchError(ContainSubstring(reason)))
	},
		Entry("no template", func(c *ec2.Config) { c.Template = "" }, `launch template ""`),
		Entry("no cluster", func(c *ec2.Config) { c.Cluster = "" }, `cluster ""`),
		Entry("no zone", func(c *ec2.Config) { c.Zones = nil }, "no availability zones"),
		Entry("a region for a zone", func(c *ec2.Config) { c.Zones = ec2.ParseZones("us-east-1") }, `zone "us-east-1"`),
		Entry("a zone twice", func(c *ec2.Config) { c.Zones = ec2.ParseZones("us-east-1a,us-east-1a") }, "twice"),
		Entry("a subnet that is none", func(c *ec2.Config) { c.Zones = ec2.ParseZones("us-east-1a:vpc-1") }, `subnet "vpc-1"`),
		Entry("an unknown region", func(c *ec2.Config) { c.Scales = "Mars 1" }, "Mars 1"),
	)
})

func settings(endpoint string) awsclient.Settings {
	return awsclient.Settings{Region: "us-east-1", Endpoint: endpoint, Credentials: credentials.NewStaticCredentialsProvider("local", "local", "")}
}

func client(endpoint string) *sdk.Client {
	return sdk.New(sdk.Options{Region: "us-east-1", BaseEndpoint: aws.String(endpoint), Credentials: credentials.NewStaticCredentialsProvider("local", "local", "")})
}

// template makes the launch template, of the first image that moto has.
func template(ctx context.Context, endpoint string) {
	GinkgoHelper()
	images, err := client(endpoint).DescribeImages(ctx, &sdk.DescribeImagesInput{})
	Expect(err).NotTo(HaveOccurred())
	_, err = client(endpoint).CreateLaunchTemplate(ctx, &sdk.CreateLaunchTemplateInput{
		LaunchTemplateName: aws.String("mrgc-gpu"),
		LaunchTemplateData: &types.RequestLaunchTemplateData{
			ImageId: images.Images[0].ImageId, InstanceType: "g6e.2xlarge",
			EnclaveOptions: &types.LaunchTemplateEnclaveOptionsRequest{Enabled: aws.Bool(true)},
		},
	})
	Expect(err).NotTo(HaveOccurred())
}
