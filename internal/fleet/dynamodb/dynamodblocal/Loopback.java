import com.amazonaws.services.dynamodbv2.local.main.ServerRunner;
import com.amazonaws.services.dynamodbv2.local.server.DynamoDBProxyServer;
import java.lang.reflect.Field;
import org.eclipse.jetty.server.Server;
import org.eclipse.jetty.server.ServerConnector;

/**
 * DynamoDB Local on one loopback address alone, which it has no option for. The first argument is
 * the address and its port, 0 for one that the system chooses; the rest is DynamoDB Local's own. It prints the
 * port once it listens, and ends with its standard input: whoever started it need not live to
 * stop it.
 */
final class Loopback {
    public static void main(String[] arguments) throws Exception {
        String[] own = java.util.Arrays.copyOfRange(arguments, 1, arguments.length);
        DynamoDBProxyServer local = ServerRunner.createServerFromCommandLineArgs(own);
        Field field = DynamoDBProxyServer.class.getDeclaredField("server");
        field.setAccessible(true);
        ServerConnector connector = (ServerConnector) ((Server) field.get(local)).getConnectors()[0];
        connector.setHost(arguments[0].split(":")[0]);
        connector.setPort(Integer.parseInt(arguments[0].split(":")[1]));
        local.start();
        System.out.println("listening on port " + connector.getLocalPort());
        while (System.in.read() >= 0) {}
        Runtime.getRuntime().halt(0);
    }
}
