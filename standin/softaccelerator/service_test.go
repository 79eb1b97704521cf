package softaccelerator_test

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/standin/softaccelerator"
)

var _ = Describe("The API", func() {
	var w *world
	BeforeEach(func() { w = newWorld() })

	listener := aws.String(softaccelerator.ListenerARN)
	describe := func(ctx context.Context, region string) *types.EndpointGroup {
		GinkgoHelper()
		out, err := w.api().DescribeEndpointGroup(ctx, &sdk.DescribeEndpointGroupInput{EndpointGroupArn: groupARN(region)})
		Expect(err).NotTo(HaveOccurred())
		return out.EndpointGroup
	}

	It("leads from accelerators to listeners to endpoint groups", func(ctx SpecContext) {
		accelerators, err := w.api().ListAccelerators(ctx, &sdk.ListAcceleratorsInput{})
		Expect(err).NotTo(HaveOccurred())
		Expect(accelerators.Accelerators).To(HaveLen(1))
		a := accelerators.Accelerators[0]
		Expect(a.Status).To(Equal(types.AcceleratorStatusDeployed))
		Expect(*a.Enabled).To(BeTrue())
		Expect(*a.CreatedTime).To(BeTemporally("~", w.clock.Now(), 10e9))
		listeners, err := w.api().ListListeners(ctx, &sdk.ListListenersInput{AcceleratorArn: a.AcceleratorArn})
		Expect(err).NotTo(HaveOccurred())
		Expect(listeners.Listeners).To(HaveLen(1))
		l, err := w.api().DescribeListener(ctx, &sdk.DescribeListenerInput{ListenerArn: listeners.Listeners[0].ListenerArn})
		Expect(err).NotTo(HaveOccurred())
		Expect(l.Listener.Protocol).To(Equal(types.ProtocolTcp))
		Expect(*l.Listener.PortRanges[0].FromPort).To(BeEquivalentTo(443))
		groups, err := w.api().ListEndpointGroups(ctx, &sdk.ListEndpointGroupsInput{ListenerArn: l.Listener.ListenerArn})
		Expect(err).NotTo(HaveOccurred())
		Expect(groups.EndpointGroups).To(HaveLen(3))
		Expect(groups.NextToken).To(BeNil())
		for i, g := range groups.EndpointGroups {
			Expect(*g.EndpointGroupRegion).To(Equal(regions[i]))
			Expect(*g.EndpointGroupArn).To(HavePrefix(*l.Listener.ListenerArn + "/endpoint-group/"))
			Expect(*g.TrafficDialPercentage).To(BeEquivalentTo(100))
			Expect(*g.ThresholdCount).To(BeEquivalentTo(3))
			Expect(*g.HealthCheckIntervalSeconds).To(BeEquivalentTo(10))
			Expect(g.HealthCheckProtocol).To(Equal(types.HealthCheckProtocolHttp))
			Expect(*g.EndpointDescriptions[0].Weight).To(BeEquivalentTo(128))
		}
	})

	It("gives lists by pages", func(ctx SpecContext) {
		var sizes []int
		pages := sdk.NewListEndpointGroupsPaginator(w.api(), &sdk.ListEndpointGroupsInput{ListenerArn: listener, MaxResults: aws.Int32(2)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			Expect(err).NotTo(HaveOccurred())
			sizes = append(sizes, len(page.EndpointGroups))
		}
		Expect(sizes).To(Equal([]int{2, 1}))
	})

	It("changes what is given, and leaves the rest", func(ctx SpecContext) {
		before := describe(ctx, "us-east-2")
		out, err := w.api().UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{EndpointGroupArn: groupARN("us-east-2"), TrafficDialPercentage: aws.Float32(12.5)})
		Expect(err).NotTo(HaveOccurred())
		Expect(*out.EndpointGroup.TrafficDialPercentage).To(BeEquivalentTo(12.5))
		after := describe(ctx, "us-east-2")
		Expect(*after.TrafficDialPercentage).To(BeEquivalentTo(12.5), "described at once, in effect later")
		Expect(*after.HealthCheckPath).To(Equal(*before.HealthCheckPath))
		Expect(*after.HealthCheckPort).To(Equal(*before.HealthCheckPort))
		Expect(after.EndpointDescriptions).To(HaveLen(1))

		_, err = w.api().UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{
			EndpointGroupArn: groupARN("us-east-2"), HealthCheckIntervalSeconds: aws.Int32(30), HealthCheckPath: aws.String("/x"), HealthCheckPort: aws.Int32(81),
			HealthCheckProtocol: types.HealthCheckProtocolHttps, ThresholdCount: aws.Int32(2),
			EndpointConfigurations: []types.EndpointConfiguration{{EndpointId: aws.String("arn:us-east-2"), Weight: aws.Int32(0)}},
		})
		Expect(err).NotTo(HaveOccurred())
		after = describe(ctx, "us-east-2")
		Expect(*after.TrafficDialPercentage).To(BeEquivalentTo(12.5))
		Expect(*after.HealthCheckIntervalSeconds).To(BeEquivalentTo(30))
		Expect(*after.HealthCheckPath).To(Equal("/x"))
		Expect(*after.HealthCheckPort).To(BeEquivalentTo(81))
		Expect(after.HealthCheckProtocol).To(Equal(types.HealthCheckProtocolHttps))
		Expect(*after.ThresholdCount).To(BeEquivalentTo(2))
		Expect(*after.EndpointDescriptions[0].Weight).To(BeZero())
	})

	It("has no connection go to a weight of 0, and checks an endpoint that comes again anew", func(ctx SpecContext) {
		w.ready(ctx)
		endpoints := func(all ...types.EndpointConfiguration) {
			GinkgoHelper()
			_, err := w.api().UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{EndpointGroupArn: groupARN("us-east-1"), EndpointConfigurations: all})
			Expect(err).NotTo(HaveOccurred())
			w.clock.Advance(deploy)
		}
		endpoints(types.EndpointConfiguration{EndpointId: aws.String("arn:us-east-1"), Weight: aws.Int32(0)})
		Expect(w.reached(east)).To(Equal("us-east-2"))
		endpoints([]types.EndpointConfiguration{}...)
		Expect(w.reached(east)).To(Equal("us-east-2"))
		w.doors["us-east-1"].well.Store(false)
		endpoints(types.EndpointConfiguration{EndpointId: aws.String("arn:us-east-1")})
		w.expectHealth(ctx, "us-east-1", types.HealthStateUnhealthy)
	})

	DescribeTable("refuses", func(ctx SpecContext, call func(context.Context, *sdk.Client) error, want string) {
		Expect(code(call(ctx, w.api()))).To(Equal(want))
	},
		Entry("an accelerator that is not there", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.DescribeAccelerator(ctx, &sdk.DescribeAcceleratorInput{AcceleratorArn: aws.String("arn:x")})
			return err
		}, "AcceleratorNotFoundException"),
		Entry("listeners of one", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.ListListeners(ctx, &sdk.ListListenersInput{AcceleratorArn: aws.String("arn:x")})
			return err
		}, "AcceleratorNotFoundException"),
		Entry("a listener that is not there", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.DescribeListener(ctx, &sdk.DescribeListenerInput{ListenerArn: aws.String("arn:x")})
			return err
		}, "ListenerNotFoundException"),
		Entry("endpoint groups of one", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.ListEndpointGroups(ctx, &sdk.ListEndpointGroupsInput{ListenerArn: aws.String("arn:x")})
			return err
		}, "ListenerNotFoundException"),
		Entry("an endpoint group that is not there", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.DescribeEndpointGroup(ctx, &sdk.DescribeEndpointGroupInput{EndpointGroupArn: aws.String("arn:x")})
			return err
		}, "EndpointGroupNotFoundException"),
		Entry("to change one", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{EndpointGroupArn: aws.String("arn:x")})
			return err
		}, "EndpointGroupNotFoundException"),
		Entry("a token that it has not given", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.ListEndpointGroups(ctx, &sdk.ListEndpointGroupsInput{ListenerArn: listener, NextToken: aws.String("YWZ0ZXItMw==")}) // after-3
			return err
		}, "InvalidNextTokenException"),
		Entry("pages of none", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.ListEndpointGroups(ctx, &sdk.ListEndpointGroupsInput{ListenerArn: listener, MaxResults: aws.Int32(0)})
			return err
		}, "InvalidArgumentException"),
		Entry("what it cannot do", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.DeleteAccelerator(ctx, &sdk.DeleteAcceleratorInput{AcceleratorArn: aws.String("arn:x")})
			return err
		}, "UnknownOperationException"),
		Entry("a parameter that it does not know", func(ctx context.Context, c *sdk.Client) error {
			_, err := c.UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{EndpointGroupArn: groupARN("us-east-1"), PortOverrides: []types.PortOverride{{}}})
			return err
		}, "SerializationException"),
	)

	DescribeTable("refuses an update", func(ctx SpecContext, change func(*sdk.UpdateEndpointGroupInput)) {
		in := &sdk.UpdateEndpointGroupInput{EndpointGroupArn: groupARN("us-east-1"), TrafficDialPercentage: aws.Float32(50)}
		change(in)
		_, err := w.api().UpdateEndpointGroup(ctx, in)
		Expect(code(err)).To(Equal("InvalidArgumentException"))
		Expect(*describe(ctx, "us-east-1").TrafficDialPercentage).To(BeEquivalentTo(100), "nothing of it is done")
	},
		Entry("with a dial below 0", func(in *sdk.UpdateEndpointGroupInput) { in.TrafficDialPercentage = aws.Float32(-0.1) }),
		Entry("with a dial above 100", func(in *sdk.UpdateEndpointGroupInput) { in.TrafficDialPercentage = aws.Float32(100.1) }),
		Entry("with an interval that is neither 10 nor 30", func(in *sdk.UpdateEndpointGroupInput) { in.HealthCheckIntervalSeconds = aws.Int32(20) }),
		Entry("with a threshold of 11", func(in *sdk.UpdateEndpointGroupInput) { in.ThresholdCount = aws.Int32(11) }),
		Entry("with a port of 0", func(in *sdk.UpdateEndpointGroupInput) { in.HealthCheckPort = aws.Int32(0) }),
		Entry("with a path that is none", func(in *sdk.UpdateEndpointGroupInput) { in.HealthCheckPath = aws.String("healthz") }),
		Entry("with a protocol that is none", func(in *sdk.UpdateEndpointGroupInput) { in.HealthCheckProtocol = "UDP" }),
		Entry("with an endpoint that is not there", func(in *sdk.UpdateEndpointGroupInput) {
			in.EndpointConfigurations = []types.EndpointConfiguration{{EndpointId: aws.String("arn:x")}}
		}),
		Entry("with a weight of 256", func(in *sdk.UpdateEndpointGroupInput) {
			in.EndpointConfigurations = []types.EndpointConfiguration{{EndpointId: aws.String("arn:us-east-1"), Weight: aws.Int32(256)}}
		}),
	)

	DescribeTable("believes no request", func(ctx SpecContext, edit func(*http.Request), want string) {
		_, err := w.api(edit).ListAccelerators(ctx, &sdk.ListAcceleratorsInput{})
		Expect(code(err)).To(Equal(want))
	},
		Entry("that was changed on its way", func(r *http.Request) {
			body := `{"MaxResults":1}`
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		}, "InvalidSignatureException"),
		Entry("that is not signed", func(r *http.Request) { r.Header.Del("Authorization") }, "MissingAuthenticationTokenException"),
		Entry("that is signed for another service", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "/globalaccelerator/", "/kms/", 1))
		}, "IncompleteSignatureException"),
		Entry("that is signed for another region", func(r *http.Request) {
			r.Header.Set("Authorization", strings.Replace(r.Header.Get("Authorization"), "/us-west-2/", "/us-east-1/", 1))
		}, "InvalidSignatureException"),
	)
})

var _ = DescribeTable("Not started is an accelerator", func(change func(*softaccelerator.Config), why string) {
	config := softaccelerator.Config{
		Groups: []softaccelerator.Group{
			{Region: "us-east-1", Endpoints: []softaccelerator.Endpoint{{ID: "a", Address: "127.0.0.1:1"}}},
			{Region: "us-west-2", Endpoints: []softaccelerator.Endpoint{{ID: "b", Address: "127.0.0.1:2"}}},
		},
		Clients: []softaccelerator.Client{{Nearest: []string{"us-west-2", "us-east-1"}}},
	}
	config.Credentials.AccessKeyID = "AKIA"
	_, err := softaccelerator.New(config)
	Expect(err).NotTo(HaveOccurred(), "without the change")
	change(&config)
	_, err = softaccelerator.New(config)
	Expect(err).To(MatchError(ContainSubstring(why)))
},
	Entry("that nobody may ask", func(c *softaccelerator.Config) { c.Credentials.AccessKeyID = "" }, "credentials"),
	Entry("without groups", func(c *softaccelerator.Config) { c.Groups, c.Clients = nil, nil }, "no endpoint group"),
	Entry("with two groups in a region", func(c *softaccelerator.Config) { c.Groups[1].Region = "us-east-1" }, "one in each region"),
	Entry("with an endpoint twice", func(c *softaccelerator.Config) { c.Groups[1].Endpoints[0].ID = "a" }, "an id of its own"),
	Entry("with an endpoint that is nowhere", func(c *softaccelerator.Config) { c.Groups[1].Endpoints[0].Address = "x" }, "host:port"),
	Entry("with an interval of 5 s", func(c *softaccelerator.Config) { c.Groups[0].Check.IntervalSeconds = 5 }, "10 or 30"),
	Entry("with a client that is near to nothing", func(c *softaccelerator.Config) { c.Clients[0].Nearest = nil }, "want all"),
	Entry("with a client that is near to what is not there", func(c *softaccelerator.Config) { c.Clients[0].Nearest[0] = "eu-west-1" }, "eu-west-1"),
)
