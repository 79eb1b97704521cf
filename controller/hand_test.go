package controller_test

import (
	"context"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/mrgc/mrgc/internal/dynamo"
)

// setNumber writes a field of use1's row in autoscaling_state as a person does in
// AWS's console: it is no part of this project, and counts no version.
func setNumber(ctx context.Context, client *dynamo.Client, field string, value int) error {
	_, err := client.UpdateItem(ctx, &sdk.UpdateItemInput{
		TableName: aws.String("autoscaling_state"), Key: map[string]types.AttributeValue{"region": &types.AttributeValueMemberS{Value: "use1"}},
		UpdateExpression: aws.String("SET #f = :v"), ExpressionAttributeNames: map[string]string{"#f": field},
		ExpressionAttributeValues: map[string]types.AttributeValue{":v": &types.AttributeValueMemberN{Value: strconv.Itoa(value)}},
	})
	return err
}
