// Package ec2 launches, lists and terminates a region's GPU instances, for the scaling
// loop:
//
//	cloud, err := ec2.Open(ctx, ec2.Config{Settings: …, Template: "mrgc-gpu", Zones: …, Cluster: "mrgc", Scales: "use1"})
//	if err != nil { … }
//	defer cloud.Close()
//	result, err := cloud.Launch(ctx, action)
//	instances, err := cloud.Instances(ctx)
//	err = cloud.Terminate(ctx, instances[0].ID)
//
// What an instance is like (its type, image, role, and that enclaves are enabled) is the
// launch template's, at its default version; this package adds zone and tags. Its tags
// are how it is found again: mrgc:cluster, mrgc:region, and mrgc:intent, which is the
// name that package autoscaler gave the launch. A launch's client token makes its
// repetition the same launch (EC2 API reference, "Ensuring idempotency").
//
// Every call ends within some seconds. After one that fails, what it did is not known,
// but for a launch that EC2 refuses because it has no capacity.
//
// The AWS identity needs ec2:RunInstances and ec2:CreateTags for the template's
// resources, iam:PassRole for its role, ec2:DescribeInstances, and ec2:TerminateInstances
// for instances with the cluster's tag.
package ec2

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/mrgc/mrgc/controller"
	"github.com/mrgc/mrgc/controller/autoscaler"
	"github.com/mrgc/mrgc/internal/awsclient"
	"github.com/mrgc/mrgc/internal/fleet"
)

// callTimeout bounds what one of the methods does, with all its tries.
const callTimeout = 10 * time.Second

// Tags of instances.
const (
	tagCluster = "mrgc:cluster"
	tagRegion  = "mrgc:region"
	tagIntent  = "mrgc:intent"
)

// Zone is where instances may be launched.
type Zone struct {
	Name   string // "us-east-1a"
	Subnet string // "subnet-…"; empty: the zone's default one
}

// Config says which instances they are.
type Config struct {
	awsclient.Settings
	// Template is the launch template's name, or its id, "lt-…". Required.
	Template string
	// Zones are those that actions name. Required.
	Zones []Zone
	// Cluster tells clusters of one account apart. Required.
	Cluster string
	// Scales is the region whose instances they are. Required.
	Scales fleet.Region
}

// Forms of names (EC2 API reference, CreateLaunchTemplate and Subnet). A cluster's is a
// tag's value, of which less is allowed here.
var (
	templateName = regexp.MustCompile(`^[A-Za-z0-9()./_-]{3,128}$`)
	zoneName     = regexp.MustCompile(`^[a-z]{2}(-[a-z]+)+-[0-9]+[a-z]$`)
	subnetID     = regexp.MustCompile(`^subnet-[0-9a-f]+$`)
	clusterName  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
)

// Cloud is one region's EC2. It is safe for concurrent use.
type Cloud struct {
	config Config
	client *sdk.Client
	loaded *awsclient.Loaded
}

var _ controller.Cloud = (*Cloud)(nil)

// Open prepares to ask, without a request.
func Open(ctx context.Context, config Config) (*Cloud, error) {
	if err := config.check(); err != nil {
		return nil, fmt.Errorf("EC2: %w", err)
	}
	loaded, err := awsclient.Load(ctx, config.Settings)
	if err != nil {
		return nil, fmt.Errorf("EC2: %w", err)
	}
	return &Cloud{config: config, client: sdk.NewFromConfig(loaded.Config), loaded: loaded}, nil
}

func (c *Config) check() error {
	switch {
	case !templateName.MatchString(c.Template):
		return fmt.Errorf("launch template %q: want a name of 3 to 128 of A-Z, a-z, 0-9 and ().-_/, or an id", c.Template)
	case !clusterName.MatchString(c.Cluster):
		return fmt.Errorf("cluster %q: want 1 to 64 of A-Z, a-z, 0-9 and ._-", c.Cluster)
	case len(c.Zones) == 0:
		return errors.New("no availability zones")
	}
	for i, zone := range c.Zones {
		switch {
		case !zoneName.MatchString(zone.Name):
			return fmt.Errorf("availability zone %q: want one like us-east-1a", zone.Name)
		case zone.Subnet != "" && !subnetID.MatchString(zone.Subnet):
			return fmt.Errorf("subnet %q of %s: want subnet-…", zone.Subnet, zone.Name)
		case slices.ContainsFunc(c.Zones[:i], func(z Zone) bool { return z.Name == zone.Name }):
			return fmt.Errorf("availability zone %s is there twice", zone.Name)
		}
	}
	return c.Scales.Validate()
}

// ParseZones reads ZONE[:SUBNET],….
func ParseZones(text string) (zones []Zone) {
	for one := range strings.SplitSeq(text, ",") {
		name, subnet, _ := strings.Cut(one, ":")
		zones = append(zones, Zone{Name: name, Subnet: subnet})
	}
	return zones
}

// Close gives the connections back.
func (c *Cloud) Close() { c.loaded.Close() }

// noCapacity are the errors of RunInstances after which another zone may do (EC2 API
// reference, "Error codes"): it has none, or none of that type. An account's limit
// counts, too, as nothing else helps than to wait.
var noCapacity = []string{
	"InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity", "Unsupported",
	"InstanceLimitExceeded", "VcpuLimitExceeded", "InsufficientFreeAddressesInSubnet",
}

// Launch launches the instance of an action.
func (c *Cloud) Launch(ctx context.Context, a autoscaler.Action) (autoscaler.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	result := autoscaler.Result{Intent: a.Intent, Attempt: a.Attempt}
	at := slices.IndexFunc(c.config.Zones, func(z Zone) bool { return z.Name == a.Zone })
	if at < 0 {
		return result, fmt.Errorf("EC2: launch %s: zone %q is not one of those that are configured", a.Intent, a.Zone)
	}
	input := &sdk.RunInstancesInput{
		LaunchTemplate: c.template(), MinCount: aws.Int32(1), MaxCount: aws.Int32(1), ClientToken: aws.String(a.Token),
		Placement: &types.Placement{AvailabilityZone: aws.String(a.Zone)},
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeInstance, Tags: []types.Tag{
			{Key: aws.String(tagCluster), Value: aws.String(c.config.Cluster)},
			{Key: aws.String(tagRegion), Value: aws.String(string(c.config.Scales))},
			{Key: aws.String(tagIntent), Value: aws.String(a.Intent)},
			{Key: aws.String("Name"), Value: aws.String(a.Intent)},
		}}},
	}
	if subnet := c.config.Zones[at].Subnet; subnet != "" {
		input.SubnetId, input.Placement = aws.String(subnet), nil // which is in the zone
	}
	out, err := c.client.RunInstances(ctx, input)
	if code := codeOf(err); slices.Contains(noCapacity, code) {
		result.NoCapacity = true
		return result, nil
	}
	if err != nil {
		return result, fmt.Errorf("EC2: launch %s in %s: %w", a.Intent, a.Zone, err)
	}
	if len(out.Instances) != 1 || out.Instances[0].InstanceId == nil {
		return result, fmt.Errorf("EC2: launch %s in %s: it answers with %d instances", a.Intent, a.Zone, len(out.Instances))
	}
	result.Instance = *out.Instances[0].InstanceId
	return result, nil
}

func (c *Cloud) template() *types.LaunchTemplateSpecification {
	t := &types.LaunchTemplateSpecification{Version: aws.String("$Default")}
	if strings.HasPrefix(c.config.Template, "lt-") {
		t.LaunchTemplateId = aws.String(c.config.Template)
	} else {
		t.LaunchTemplateName = aws.String(c.config.Template)
	}
	return t
}

// Instances lists those that have the region's tags and are not terminated.
func (c *Cloud) Instances(ctx context.Context) ([]controller.CloudInstance, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	filter := func(name string, values ...string) types.Filter {
		return types.Filter{Name: aws.String(name), Values: values}
	}
	pages := sdk.NewDescribeInstancesPaginator(c.client, &sdk.DescribeInstancesInput{
		MaxResults: aws.Int32(1000),
		Filters: []types.Filter{
			filter("tag:"+tagCluster, c.config.Cluster), filter("tag:"+tagRegion, string(c.config.Scales)),
			filter("instance-state-name", "pending", "running", "shutting-down", "stopping", "stopped"),
		},
	})
	all := []controller.CloudInstance{}
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("EC2: list the instances of %s: %w", c.config.Scales, err)
		}
		for _, reservation := range page.Reservations {
			for _, in := range reservation.Instances {
				all = append(all, listed(in))
			}
		}
	}
	return all, nil
}

func listed(in types.Instance) controller.CloudInstance {
	out := controller.CloudInstance{ID: aws.ToString(in.InstanceId)}
	if in.Placement != nil {
		out.Zone = aws.ToString(in.Placement.AvailabilityZone)
	}
	if in.State != nil {
		out.Leaving = in.State.Name != types.InstanceStateNamePending && in.State.Name != types.InstanceStateNameRunning
	}
	for _, tag := range in.Tags {
		if aws.ToString(tag.Key) == tagIntent {
			out.Intent = aws.ToString(tag.Value)
		}
	}
	return out
}

// Terminate terminates an instance; one that is not there is.
func (c *Cloud) Terminate(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.client.TerminateInstances(ctx, &sdk.TerminateInstancesInput{InstanceIds: []string{id}})
	if err == nil || codeOf(err) == "InvalidInstanceID.NotFound" {
		return nil
	}
	return fmt.Errorf("EC2: terminate %s: %w", id, err)
}

func codeOf(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}
