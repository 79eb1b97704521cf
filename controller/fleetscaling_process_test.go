package controller_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	awsec2 "github.com/mrgc/mrgc/controller/ec2"
	"github.com/mrgc/mrgc/controller/ec2/moto"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
	"github.com/mrgc/mrgc/internal/fleet/sqlite"
	"github.com/mrgc/mrgc/internal/state"
	"github.com/mrgc/mrgc/internal/state/open"
)

// With these set, the controller that the test binary is run as scales by an EC2, and
// goes by a fleet's store in a file.
const (
	cloudEnv = "MRGC_TEST_CONTROLLER_EC2"
	fleetEnv = "MRGC_TEST_CONTROLLER_FLEET"
)

// cloudScaler is the scaling loop with the real driver, hurried.
func cloudScaler(ctx context.Context) (controller.Runner, error) {
	cloud, err := awsec2.Open(ctx, cloudConfig(os.Getenv(cloudEnv)))
	if err != nil {
		return nil, err
	}
	instances, err := sqlite.Open(ctx, sqlite.Config{Path: os.Getenv(fleetEnv)})
	if err != nil {
		return nil, err
	}
	rules := autoscaler.Config{Region: "use1", Zones: []string{"us-east-1a", "us-east-1b"}, Min: 2, Max: 20, Settle: 3 * time.Second}
	scaling, err := controller.NewScaling(always(rules), controller.Scaled{Cloud: cloud, Fleet: instances, StaleAfter: always(5 * time.Second)})
	if err != nil {
		return nil, err
	}
	scaling.Every = 100 * time.Millisecond
	return scaling.Loop()
}

// always gives the same.
func always[T any](v T) func() T { return func() T { return v } }

func cloudConfig(endpoint string) awsec2.Config {
	return awsec2.Config{
		Settings: awsclient.Settings{Region: "us-east-1", Endpoint: endpoint}, Template: "mrgc-gpu", Cluster: "killed", Scales: "use1",
		Zones: awsec2.ParseZones("us-east-1a,us-east-1b"),
	}
}

// emulated is an EC2 with the launch template, and what its instances' parents write.
type emulated struct {
	front *moto.Front
	url   string
	sdk   *sdk.Client // of moto itself
	fleet *sqlite.Store
	path  string
}

func startEmulated(ctx context.Context) *emulated {
	GinkgoHelper()
	if missing := moto.Missing(); missing != "" {
		Skip(missing)
	}
	server, err := moto.Start(ctx, GinkgoWriter)
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(server.Kill)
	e := &emulated{path: filepath.Join(GinkgoT().TempDir(), "fleet.db")}
	e.front, err = moto.NewFront(server)
	Expect(err).NotTo(HaveOccurred())
	front := httptest.NewServer(e.front)
	DeferCleanup(front.Close)
	e.url = front.URL
	e.sdk = sdk.New(sdk.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(server.Endpoint), Credentials: credentials.NewStaticCredentialsProvider("local", "local", ""),
	})
	images, err := e.sdk.DescribeImages(ctx, &sdk.DescribeImagesInput{})
	Expect(err).NotTo(HaveOccurred())
	_, err = e.sdk.CreateLaunchTemplate(ctx, &sdk.CreateLaunchTemplateInput{
		LaunchTemplateName: aws.String("mrgc-gpu"),
		LaunchTemplateData: &types.RequestLaunchTemplateData{ImageId: images.Images[0].ImageId, InstanceType: "g6e.2xlarge"},
	})
	Expect(err).NotTo(HaveOccurred())
	e.fleet, err = sqlite.Open(ctx, sqlite.Config{Path: e.path})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(e.fleet.Close)
	return e
}

// machine is an instance of EC2's, of whatever state.
type machine struct {
	id, intent string
	running    bool
}

func (e *emulated) machines(ctx context.Context) (all []machine, err error) {
	out, err := e.sdk.DescribeInstances(ctx, &sdk.DescribeInstancesInput{MaxResults: aws.Int32(1000)})
	if err != nil {
		return nil, err
	}
	for _, reservation := range out.Reservations {
		for _, in := range reservation.Instances {
			m := machine{id: aws.ToString(in.InstanceId), running: in.State.Name == types.InstanceStateNameRunning}
			for _, tag := range in.Tags {
				if aws.ToString(tag.Key) == "mrgc:intent" {
					m.intent = aws.ToString(tag.Value)
				}
			}
			all = append(all, m)
		}
	}
	return all, nil
}

func (e *emulated) running(ctx context.Context) int {
	GinkgoHelper()
	machines, err := e.machines(ctx)
	Expect(err).NotTo(HaveOccurred())
	n := 0
	for _, m := range machines {
		if m.running {
			n++
		}
	}
	return n
}

// beat has all running instances' parents say that they are well, until the spec ends.
func (e *emulated) beat(ctx context.Context) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var beating sync.WaitGroup
	beating.Go(func() {
		for ctx.Err() == nil {
			machines, _ := e.machines(ctx) // asked again at once
			for i, m := range machines {
				if !m.running {
					continue
				}
				well := fleet.Health{Enclave: true, Engine: true}
				if e.fleet.Heartbeat(ctx, fleet.Heartbeat{ID: m.id, Health: well}) != nil {
					_ = e.fleet.Register(ctx, fleet.Instance{ID: m.id, Region: "use1", Address: fmt.Sprintf("127.0.0.1:%d", 1000+i), Health: well})
				}
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
	DeferCleanup(func() { cancel(); beating.Wait() })
}

var _ = Describe("Controllers that scale by EC2 and are killed at any time", func() {
	It("lose no instance, launch none twice, and end none but those that were to go", func(ctx SpecContext) {
		kills := 6
		if os.Getenv("MRGC_TEST_LONG") != "" {
			kills = 50
		}
		e := startEmulated(ctx)
		s, client := dynamoSite(ctx, 300*time.Millisecond)
		GinkgoT().Setenv(cloudEnv, e.url)
		GinkgoT().Setenv(fleetEnv, e.path)
		e.beat(ctx)
		running := []*process{s.start("use1"), s.start("use1")}
		Eventually(e.running, "30s", "50ms").WithArguments(ctx).Should(Equal(2))
		wanted, most := 2, 2
		for i := range kills {
			before := wanted
			for wanted == before {
				wanted = 2 + rand.IntN(6)
			}
			most = max(most, wanted)
			if i%3 == 0 {
				e.front.Lose("RunInstances", 1)
			}
			setByHand(ctx, client, "desired_capacity", wanted)
			time.Sleep(rand.N(400 * time.Millisecond)) // the loop runs every 100 ms
			victim := 0
			if running[1].token() != 0 {
				victim = 1
			}
			Expect(running[victim].Process.Kill()).To(Succeed())
			running[victim] = s.start("use1")
			Eventually(e.running, "30s", "50ms").WithArguments(ctx).Should(Equal(wanted), "from %d", before)
		}
		Consistently(e.running, "1s", "50ms").WithArguments(ctx).Should(Equal(wanted))

		machines, err := e.machines(ctx)
		Expect(err).NotTo(HaveOccurred())
		intents := map[string]int{}
		for _, m := range machines {
			intents[m.intent]++
		}
		for intent, n := range intents {
			Expect(n).To(Equal(1), "%s was launched twice", intent)
		}
		store, err := open.Store(ctx, s.address, nil)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(store.Close)
		row, err := state.AutoscalingTable(store).Get(ctx, use1)
		Expect(err).NotTo(HaveOccurred())
		Expect(row.Value.DesiredCapacity).To(Equal(wanted))
		AddReportEntry("killed leaders, and launches", fmt.Sprintf("%d, %d", kills, len(machines)))
	}, SpecTimeout(10*time.Minute))
})
