package accelerator_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/globalaccelerator"
	"github.com/aws/aws-sdk-go-v2/service/globalaccelerator/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/onsi/gomega/gleak"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/accelerator"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/testclock"
	"github.com/mrgc/mrgc/standin/sigv4"
	"github.com/mrgc/mrgc/standin/softaccelerator"
)

func TestAccelerator(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "controller/accelerator")
}

var _ controller.Accelerator = (*accelerator.Accelerator)(nil)

const eventually = 10 * time.Second

var regions = map[string]fleet.Region{"us-east-1": "use1", "us-east-2": "use2", "us-west-2": "usw2"}

// world is the stand-in, and the driver that asks it. The stand-in's clock stands
// still.
type world struct {
	*accelerator.Accelerator
	config accelerator.Config
	raw    *sdk.Client // whose requests nothing happens to
	log    *bytes.Buffer
	stop   func() // the API is gone

	clock *testclock.Clock

	mu      sync.Mutex
	calls   []string                                          // guarded by mu: names of operations
	instead func(w http.ResponseWriter, r *http.Request) bool // guarded by mu: says whether it has answered
}

func newWorld(ctx context.Context, change ...func(*accelerator.Config)) *world {
	GinkgoHelper()
	DeferCleanup(func(before []gleak.Goroutine) {
		Eventually(gleak.Goroutines).WithTimeout(eventually).ShouldNot(gleak.HaveLeaked(before))
	}, gleak.Goroutines())
	w := &world{clock: testclock.At(time.Now()), log: &bytes.Buffer{}}
	who := sigv4.NewCredentials()
	config := softaccelerator.Config{Credentials: who, Second: time.Millisecond, Deploy: time.Minute, Now: w.clock.Now}
	for _, region := range []string{"us-east-1", "us-east-2", "us-west-2", "eu-west-1"} {
		door, err := net.Listen("tcp", "127.0.0.1:0")
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(door.Close)
		config.Groups = append(config.Groups, softaccelerator.Group{
			Region: region, Endpoints: []softaccelerator.Endpoint{{ID: "arn:" + region, Address: door.Addr().String()}},
			Check: softaccelerator.Check{IntervalSeconds: 10},
		})
	}
	service, err := softaccelerator.New(config)
	Expect(err).NotTo(HaveOccurred())
	running, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- service.Run(running) }()
	DeferCleanup(func() {
		stop()
		Expect(<-ran).To(Succeed())
	})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_, name, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
		w.mu.Lock()
		w.calls = append(w.calls, name)
		instead := w.instead
		w.mu.Unlock()
		if instead == nil || !instead(rw, r) {
			service.ServeHTTP(rw, r)
		}
	}))
	w.stop = server.Close
	DeferCleanup(server.Close)
	keys := credentials.NewStaticCredentialsProvider(who.AccessKeyID, who.SecretAccessKey, "")
	transport := &http.Transport{}
	DeferCleanup(transport.CloseIdleConnections)
	w.raw = sdk.New(sdk.Options{BaseEndpoint: aws.String(server.URL), Region: "us-west-2", Credentials: keys, HTTPClient: &http.Client{Transport: transport}})
	w.config = accelerator.Config{
		Settings: awsclient.Settings{Endpoint: server.URL, Credentials: keys, Logger: slog.New(slog.NewTextHandler(w.log, nil))},
		Listener: softaccelerator.ListenerARN, Regions: regions,
	}
	for _, f := range change {
		f(&w.config)
	}
	w.Accelerator, err = accelerator.Open(ctx, w.config)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(w.Close)
	return w
}

// happen has something answer instead; nil: nothing does.
func (w *world) happen(instead func(http.ResponseWriter, *http.Request) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.instead, w.calls = instead, nil
}

func (w *world) called() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.calls
}

// fail answers with an error, so many times.
func fail(times, status int, code string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		if times == 0 {
			return false
		}
		times--
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"__type":%q,"Message":"on purpose"}`, code)
		return true
	}
}

// operator sets a dial by hand.
func (w *world) operator(ctx context.Context, region int, percent float32) {
	GinkgoHelper()
	_, err := w.raw.UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{
		EndpointGroupArn: aws.String(softaccelerator.GroupARN(region)), TrafficDialPercentage: aws.Float32(percent),
	})
	Expect(err).NotTo(HaveOccurred())
}

var _ = Describe("Traffic dials", func() {
	It("are read and set, of the cluster's regions and no others", func(ctx SpecContext) {
		w := newWorld(ctx)
		Expect(w.Dials(ctx)).To(Equal(map[fleet.Region]int{"use1": 100, "use2": 100, "usw2": 100}))
		Expect(w.SetDial(ctx, "failover-1", "use2", 25)).To(Succeed())
		Expect(w.Dials(ctx)).To(Equal(map[fleet.Region]int{"use1": 100, "use2": 25, "usw2": 100}))
		Expect(w.log.String()).To(ContainSubstring("action=failover-1 region=use2 percent=25"))
	})

	It("are set by one call, as often as one likes, and nothing else of a group is", func(ctx SpecContext) {
		w := newWorld(ctx)
		Expect(w.SetDial(ctx, "a", "use1", 0)).To(Succeed(), "without having read before")
		w.happen(nil)
		Expect(w.SetDial(ctx, "a", "use1", 0)).To(Succeed())
		Expect(w.called()).To(Equal([]string{"UpdateEndpointGroup"}))
		group, err := w.raw.DescribeEndpointGroup(ctx, &sdk.DescribeEndpointGroupInput{EndpointGroupArn: aws.String(softaccelerator.GroupARN(0))})
		Expect(err).NotTo(HaveOccurred())
		Expect(*group.EndpointGroup.TrafficDialPercentage).To(BeZero())
		Expect(*group.EndpointGroup.HealthCheckIntervalSeconds).To(BeEquivalentTo(10))
		Expect(group.EndpointGroup.EndpointDescriptions).To(HaveLen(1))
	})

	It("are configured first, and in effect later", func(ctx SpecContext) {
		w := newWorld(ctx)
		Expect(w.Deployed(ctx)).To(BeTrue())
		Expect(w.SetDial(ctx, "a", "use1", 50)).To(Succeed())
		Expect(w.Deployed(ctx)).To(BeFalse())
		w.clock.Advance(time.Minute)
		Expect(w.Deployed(ctx)).To(BeTrue())
	})

	DescribeTable("are whole percents of which 0 and 100 are exact", func(ctx SpecContext, percent float32, want int) {
		w := newWorld(ctx)
		w.operator(ctx, 0, percent)
		Expect(w.Dials(ctx)).To(HaveKeyWithValue(fleet.Region("use1"), want))
	},
		Entry(nil, float32(0), 0), Entry(nil, float32(0.1), 1), Entry(nil, float32(12.4), 12),
		Entry(nil, float32(12.6), 13), Entry(nil, float32(99.9), 99), Entry(nil, float32(100), 100),
	)

	It("come with how many endpoints are healthy", func(ctx SpecContext) {
		w := newWorld(ctx)
		Eventually(w.Groups).WithContext(ctx).WithTimeout(eventually).Should(HaveKeyWithValue(fleet.Region("usw2"), accelerator.Group{Dial: 100, Endpoints: 1, Healthy: 1}))
		_, err := w.raw.UpdateEndpointGroup(ctx, &sdk.UpdateEndpointGroupInput{
			EndpointGroupArn: aws.String(softaccelerator.GroupARN(2)), EndpointConfigurations: []types.EndpointConfiguration{},
		})
		Expect(err).NotTo(HaveOccurred())
		Expect(w.Groups(ctx)).To(HaveKeyWithValue(fleet.Region("usw2"), accelerator.Group{Dial: 100}))
	})

	It("are not known of a region that has no endpoint group, and cannot be set there", func(ctx SpecContext) {
		w := newWorld(ctx, func(c *accelerator.Config) {
			c.Regions = map[string]fleet.Region{"us-east-1": "use1", "ap-south-1": "aps1"}
		})
		for range 2 {
			Expect(w.Dials(ctx)).To(Equal(map[fleet.Region]int{"use1": 100}))
		}
		Expect(strings.Count(w.log.String(), "no endpoint group")).To(Equal(1), "it is said once")
		Expect(w.log.String()).To(ContainSubstring("regions=[aps1]"))
		Expect(w.SetDial(ctx, "a", "aps1", 0)).To(MatchError(ContainSubstring("aps1 has no endpoint group")))
	})

	It("are set at a group that was made anew, with the next try", func(ctx SpecContext) {
		w := newWorld(ctx)
		Expect(w.Dials(ctx)).NotTo(BeEmpty())
		w.happen(fail(1, http.StatusBadRequest, "EndpointGroupNotFoundException"))
		Expect(w.SetDial(ctx, "a", "use1", 0)).To(MatchError(ContainSubstring("it is not there")))
		Expect(w.SetDial(ctx, "a", "use1", 0)).To(Succeed())
		Expect(w.called()).To(Equal([]string{"UpdateEndpointGroup", "ListEndpointGroups", "UpdateEndpointGroup"}))
	})

	It("are refused beyond 0 and 100, without a call", func(ctx SpecContext) {
		w := newWorld(ctx)
		for _, percent := range []int{-1, 101} {
			Expect(w.SetDial(ctx, "a", "use1", percent)).To(MatchError(ContainSubstring("want 0 to 100")))
		}
		Expect(w.called()).To(BeEmpty())
	})
})

var _ = Describe("Trouble at the API", func() {
	DescribeTable("that passes harms nothing", func(ctx SpecContext, status int, code string) {
		w := newWorld(ctx)
		w.happen(fail(2, status, code))
		Expect(w.Dials(ctx)).To(HaveLen(3))
		Expect(w.called()).To(HaveLen(3))
		w.happen(fail(2, status, code))
		Expect(w.SetDial(ctx, "a", "use1", 10)).To(Succeed())
		Expect(w.Dials(ctx)).To(HaveKeyWithValue(fleet.Region("use1"), 10))
	},
		Entry("throttled", http.StatusBadRequest, "ThrottlingException"),
		Entry("another change in progress", http.StatusBadRequest, "TransactionInProgressException"),
		Entry("failing", http.StatusInternalServerError, "InternalServiceErrorException"),
	)

	DescribeTable("that stays is told as what it is", func(ctx SpecContext, status int, code, want string) {
		w := newWorld(ctx)
		w.happen(fail(1000, status, code))
		_, err := w.Dials(ctx)
		Expect(err).To(MatchError(And(HavePrefix("accelerator: list endpoint groups: "), ContainSubstring(want), ContainSubstring("on purpose"))))
		w.happen(nil)
		Expect(w.Dials(ctx)).To(HaveLen(3))
		w.happen(fail(1000, status, code))
		err = w.SetDial(ctx, "a", "use1", 0)
		Expect(err).To(MatchError(And(HavePrefix("accelerator: dial of use1 to 0 %: "), ContainSubstring(want), ContainSubstring("on purpose"))))
		w.happen(nil)
		Expect(w.Dials(ctx)).To(HaveKeyWithValue(fleet.Region("use1"), 100))
	},
		Entry("throttled", http.StatusBadRequest, "ThrottlingException", "the API is busy"),
		Entry("not allowed", http.StatusBadRequest, "AccessDeniedException", "allow globalaccelerator:ListEndpointGroups"),
		Entry("not there", http.StatusBadRequest, "ListenerNotFoundException", "name the listener"),
		Entry("failing", http.StatusInternalServerError, "InternalServiceErrorException", "InternalServiceErrorException"),
	)

	It("is no accelerator of this name", func(ctx SpecContext) {
		w := newWorld(ctx, func(c *accelerator.Config) { c.Listener = softaccelerator.AcceleratorARN + "/listener/ffffffff" })
		_, err := w.Dials(ctx)
		Expect(err).To(MatchError(And(ContainSubstring("name the listener"), ContainSubstring("ListenerNotFoundException"))))
	})

	It("is an answer that never comes: a call ends in time, and what it did is read", func(ctx SpecContext) {
		w := newWorld(ctx)
		Expect(w.Dials(ctx)).To(HaveLen(3))
		w.happen(func(_ http.ResponseWriter, r *http.Request) bool {
			_, _ = io.Copy(io.Discard, r.Body) // else the server does not notice that who asked has gone
			<-r.Context().Done()
			return true
		})
		begin := time.Now()
		Expect(w.SetDial(ctx, "a", "use1", 0)).To(MatchError(And(ContainSubstring("what is set has to be read"), ContainSubstring("deadline exceeded"))))
		Expect(time.Since(begin)).To(BeNumerically("<", 20*time.Second))
	})

	It("is an answer that gets lost: the dial is set, and is set again", func(ctx SpecContext) {
		w := newWorld(ctx)
		Expect(w.Dials(ctx)).To(HaveLen(3))
		var calls atomic.Int32
		w.happen(func(_ http.ResponseWriter, r *http.Request) bool {
			if calls.Add(1) > 1 {
				return false
			}
			_, name, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
			Expect(name).To(Equal("UpdateEndpointGroup"))
			w.operator(ctx, 0, 40) // what it would have done
			panic(http.ErrAbortHandler)
		})
		Expect(w.SetDial(ctx, "a", "use1", 40)).To(Succeed())
		Expect(w.Dials(ctx)).To(HaveKeyWithValue(fleet.Region("use1"), 40))
	})

	It("is that nobody is there", func(ctx SpecContext) {
		w := newWorld(ctx)
		w.stop()
		_, err := w.Dials(ctx)
		Expect(err).To(MatchError(And(ContainSubstring("no answer from the API"), ContainSubstring("connection refused"))))
		Expect(w.SetDial(ctx, "a", "use1", 0)).To(MatchError(ContainSubstring("no answer from the API")))
		_, err = w.Deployed(ctx)
		Expect(err).To(MatchError(ContainSubstring("no answer from the API")))
	})

	DescribeTable("is an answer that cannot be", func(ctx SpecContext, body, want string) {
		w := newWorld(ctx)
		w.happen(func(rw http.ResponseWriter, _ *http.Request) bool {
			rw.Header().Set("Content-Type", "application/x-amz-json-1.1")
			_, _ = rw.Write([]byte(body))
			return true
		})
		_, err := w.Dials(ctx)
		Expect(err).To(MatchError(ContainSubstring(want)))
	},
		Entry("without a dial", `{"EndpointGroups":[{"EndpointGroupArn":"arn:x","EndpointGroupRegion":"us-east-1"}]}`, "use1: it says nothing of its dial"),
		Entry("with a dial of 101", `{"EndpointGroups":[{"EndpointGroupRegion":"us-east-1","TrafficDialPercentage":101}]}`, "a dial of 101 %"),
		Entry("with a dial that is no number", `{"EndpointGroups":[{"EndpointGroupRegion":"us-east-1","TrafficDialPercentage":"NaN"}]}`, "a dial of NaN %"),
	)

	It("is an update that was taken and is not so", func(ctx SpecContext) {
		w := newWorld(ctx)
		Expect(w.Dials(ctx)).To(HaveLen(3))
		w.happen(func(rw http.ResponseWriter, _ *http.Request) bool {
			rw.Header().Set("Content-Type", "application/x-amz-json-1.1")
			_, _ = rw.Write([]byte(`{"EndpointGroup":{"TrafficDialPercentage":100}}`))
			return true
		})
		Expect(w.SetDial(ctx, "a", "use1", 0)).To(MatchError(ContainSubstring("it was taken, and is not so")))
	})
})

var _ = DescribeTable("Refused is", func(ctx SpecContext, change func(*accelerator.Config), why string) {
	cfg := accelerator.Config{Listener: softaccelerator.ListenerARN, Regions: regions}
	opened, err := accelerator.Open(ctx, cfg)
	Expect(err).NotTo(HaveOccurred(), "without the change, nor with a region named")
	opened.Close()
	change(&cfg)
	_, err = accelerator.Open(ctx, cfg)
	Expect(err).To(MatchError(ContainSubstring(why)))
},
	Entry("no listener", func(c *accelerator.Config) { c.Listener = "" }, "want the ARN of its listener"),
	Entry("an accelerator instead of its listener", func(c *accelerator.Config) { c.Listener = softaccelerator.AcceleratorARN }, "want the ARN of its listener"),
	Entry("no regions", func(c *accelerator.Config) { c.Regions = nil }, "no regions"),
	Entry("http to another machine", func(c *accelerator.Config) { c.Endpoint = "http://192.0.2.1" }, "want https"),
)
